"""A judge is shown the whole record, in windows where it is long, and nothing it must not know."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from common.llm.types import Capabilities
from common.trajectory import Action, Observation, Step
from reviewer.judge.windows import Window, budget_of, windows
from tests.exporters.attempts import attempt
from tests.reviewer.endings import step
from tests.reviewer.judges import acted, changed, described

TEXT = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from('"\\\n\x00\x1b\u2028<>字🙂'),
    max_size=80,
)


@st.composite
def long_step(draw: st.DrawFn, number: int) -> Step:
    """A step with texts of up to 20,000 characters, made of pieces that JSON has to escape."""

    def text() -> str:
        return draw(TEXT) * draw(st.sampled_from([0, 1, 1, 1, 40, 250]))

    action = Action(tool="run_python", arguments={"code": text()}, call_id="c")
    return changed(
        step(number, success=draw(st.booleans())),
        thought=text(), action=action, observation=Observation(text=text()),
    )  # fmt: skip


RECORDS = st.integers(0, 5).flatmap(
    lambda count: st.tuples(*(long_step(number) for number in range(1, count + 1)))
)


def rows(parts: tuple[Window, ...]) -> list[dict[str, Any]]:
    return [json.loads(line) for part in parts for line in part.data.split("\n")]


@settings(max_examples=150, deadline=None)
@given(RECORDS, TEXT, st.sampled_from([4_000, 9_000, 48_000]))
def test_all_windows_together_hold_every_character_of_every_step(
    steps: tuple[Step, ...], answer: str, budget: int
) -> None:
    trajectory = attempt(steps=steps, final_result=answer * 100)
    parts = windows(trajectory, budget)
    found = rows(parts)
    for one in steps:
        mine = [row for row in found if row.get("step") == one.step_id]
        assert "".join(row.get("observation", "") for row in mine) == one.observation.text
        assert "".join(row.get("thought", "") for row in mine) == one.thought
        said = [row["arguments"] for row in mine if "arguments" in row]
        arguments = said[0] if isinstance(said[0], dict) else json.loads("".join(said))
        assert arguments == one.action.arguments
        assert [row.get("part", 1) for row in mine] == list(range(1, len(mine) + 1))
        assert {row.get("parts", 1) for row in mine} == {len(mine)}
    assert "".join(row.get("final_answer", "") for row in found) == answer * 100
    assert all(len(part.data.encode()) <= budget for part in parts)
    assert all(len(part.data.splitlines()) == part.data.count("\n") + 1 for part in parts)
    assert abs(sum(part.weight for part in parts) - len(steps) - 1) < 1e-6
    assert [(part.number, part.of) for part in parts] == [
        (number, len(parts)) for number in range(1, len(parts) + 1)
    ]


def test_a_short_record_is_one_window_of_whole_steps() -> None:
    (window,) = windows(acted("one", "two"), 48_000)
    assert window.shown == window.steps == {1, 2}
    assert "not_shown" not in window.data


def test_each_window_says_on_record_what_the_others_show() -> None:
    trajectory = acted(*("x" * 1500 for _ in range(6)))
    parts = windows(trajectory, 6_000)
    assert len(parts) > 1
    for part in parts:
        (told,) = [row for row in rows((part,)) if "steps_not_shown_here" in row]
        (numbers,) = told["steps_not_shown_here"]["run_python"].values()
        ends = [[int(n) for n in run.split("-")] for run in numbers.split(", ")]
        elsewhere = {n for run in ends for n in range(run[0], run[-1] + 1)}
        assert elsewhere == {1, 2, 3, 4, 5, 6} - part.shown
        assert rows((part,))[0] == {"task": "Print é."}


def test_a_description_too_long_for_every_window_keeps_both_ends_and_says_what_is_missing() -> None:
    trajectory = described("BEGIN " + "x" * 30_000 + " END")
    (window,) = windows(trajectory, 8_000)
    told = rows((window,))[0]
    assert told["task"].startswith("BEGIN ")
    assert told["end_of_task"].endswith(" END")
    shown = len(told["task"]) + len(told["end_of_task"])
    assert shown + told["characters_left_out"] == 30_010


def test_a_model_is_shown_at_most_half_of_its_context_and_never_more_than_it_can_survey() -> None:
    def of(context: int) -> int:
        return budget_of(Capabilities(tool_mode="native", max_context=context))

    assert of(6_144) == 9_216
    assert of(1_000_000) == 48_000


def test_five_hundred_long_steps_are_parted_in_a_moment() -> None:
    trajectory = acted(*("line of output\n" * 1000 for _ in range(500)))
    parts = windows(trajectory, 48_000)
    assert {number for part in parts for number in part.shown} == set(range(1, 501))
    assert all(len(part.data.encode()) <= 48_000 for part in parts)
