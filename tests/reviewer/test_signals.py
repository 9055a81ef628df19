"""What the steps of an attempt show: measured where there is something to measure."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.groups import Try
from common.review import Signal
from common.task import Assignment
from common.trajectory import Action, Observation, Step, Trajectory, Verdict
from reviewer.grounding import grounded
from reviewer.signals import ALWAYS, SIGNALS, measure
from tests.exporters.attempts import attempt
from tests.helpers import task

often = settings(max_examples=80, deadline=None)

ARGUMENTS = st.dictionaries(
    st.sampled_from(["path", "code", "city", "ids"]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(-1e9, 1e9) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["read_file", "run_python"]), ARGUMENTS, st.text(max_size=9), st.booleans()
    ),
    max_size=8,
).map(lambda all_: [step(n, t, o, success=s, **a) for n, (t, a, o, s) in enumerate(all_, 1)])


def step(
    number: int, tool: str = "read_file", seen: str = "", *, success: bool = True, **arguments: Any
) -> Step:
    return Step(
        step_id=number,
        action=Action(tool=tool, arguments=arguments, call_id=f"c{number}"),
        observation=Observation(text=seen),
        success=success,
        started_at=1.0,
        duration=0.1,
    )


def made_of(*steps: Step, description: str = "Do it.", **fields: Any) -> Trajectory:
    return attempt(
        **{
            "messages": (),
            "tools": (),
            "steps": steps,
            "assignment": Assignment(task=task(description=description)),
            **fields,
        }
    )


def tried(passed: bool | None, steps: int) -> Try:
    return Try("other", passed, None, steps)


def of(name: str, *steps: Step, **fields: Any) -> Signal | None:
    return measure(made_of(*steps, **fields)).get(name)


@often
@given(steps=STEPS, malformed=st.integers(0, 5), passed=st.none() | st.booleans())
def test_signals_are_points_with_steps_that_exist_and_the_same_each_time(
    steps: list[Step], malformed: int, passed: bool | None
) -> None:
    trajectory = made_of(*steps, malformed_answers=malformed, verdict=Verdict(passed=passed))
    siblings = [tried(True, 3)]
    found = measure(trajectory, siblings)
    assert set(SIGNALS) >= found.keys() >= ALWAYS
    assert all(signal.name == name for name, signal in found.items())
    for signal in found.values():
        assert {one.step_id for one in steps}.issuperset(signal.steps)
        assert list(signal.steps) == sorted(signal.steps)
    read = Trajectory.model_validate_json(trajectory.model_dump_json(by_alias=True))
    assert measure(read, siblings) == found


def test_an_attempt_without_steps_has_no_faults_and_nothing_else() -> None:
    found = measure(made_of())
    assert found.keys() == ALWAYS
    assert {(signal.points, signal.steps) for signal in found.values()} == {(1.0, ())}


def test_failed_steps_are_wasted_and_their_tool_may_make_up_for_it() -> None:
    steps = [
        step(1, "run", success=False, code="a"), step(2, "run", code="b"),
        step(3, "read", success=False, path="c"), step(4, "run", success=False, code="d"),
    ]  # fmt: skip
    wasted, recovery = of("wasted_steps", *steps), of("recovery", *steps)
    assert wasted is not None and recovery is not None
    assert (wasted.value, wasted.points, wasted.steps) == (3, 0.25, (1, 3, 4))
    assert (recovery.value, recovery.points, recovery.steps) == (1, 0.3333, (1, 3, 4))
    assert of("recovery", steps[1]) is None, "nothing failed, so nothing shows"


def test_answers_that_could_not_be_read_count_among_all_answers() -> None:
    malformed = of("malformed", step(1), step(2), step(3), malformed_answers=1)
    assert malformed is not None
    assert (malformed.value, malformed.points) == (1, 0.75)


@often
@given(
    steps=STEPS, idle=st.integers(1, 40), malformed=st.integers(0, 5),
    more=st.sampled_from(["read_file", "run_python"]),
)  # fmt: skip
def test_no_number_of_idle_steps_hides_faults(
    steps: list[Step], idle: int, malformed: int, more: str
) -> None:
    padding = [step(len(steps) + n, more, f"{n}", path=f"idle-{n}") for n in range(1, idle + 1)]
    before = measure(made_of(*steps, malformed_answers=malformed))
    after = measure(made_of(*steps, *padding, malformed_answers=malformed))
    for name in ("wasted_steps", "malformed", "repetition"):
        assert after[name].value == before[name].value
        assert after[name].points <= round(4 / (4 + before[name].value), 4)
    if "recovery" in before:
        assert after["recovery"].value <= before["recovery"].value + 2, "the first of them at most"


@pytest.mark.parametrize(
    ("outcomes", "recovered"),
    [
        ("x.", 1), ("xx.", 2), ("xxx.", 2), ("xxx....", 2), ("xxxxxx.", 2),
        ("x.x.x.", 3), (".xxx", 0), ("x.xxx.", 3),
    ],
)  # fmt: skip
def test_a_success_makes_up_for_the_last_two_failures_in_a_row(
    outcomes: str, recovered: int
) -> None:
    steps = [step(n, success=how != "x", path=f"{n}") for n, how in enumerate(outcomes, 1)]
    found = of("recovery", *steps)
    assert found is not None
    failed = outcomes.count("x")
    assert (found.value, found.points) == (recovered, round(recovered / failed, 4))


# -- repetition -----------------------------------------------------------------------------------


def repeated(*steps: Step) -> tuple[int, ...]:
    found = of("repetition", *steps)
    assert found is not None
    count = len(found.steps)
    assert found.points == pytest.approx(min(1 - count / len(steps), 4 / (4 + count)), abs=1e-4)
    return found.steps


def test_the_same_call_again_is_a_repeat_whatever_the_order_of_its_arguments() -> None:
    one = step(1, "search", "none", text="x", options={"a": [1], "b": 2})
    two = step(2, "search", "none", options={"b": 2, "a": [1]}, text="x")
    assert repeated(one, two) == (2,)
    assert repeated(one, step(2, "search", "none", text="x", options={"a": [2], "b": 2})) == ()


def test_true_and_one_are_different_arguments() -> None:
    calls: list[Any] = [True, 1, False, 0, [True], [1], {"a": False}, {"a": 0}]
    assert repeated(*(step(n, "set", "ok", to=to) for n, to in enumerate(calls, 1))) == ()
    assert repeated(*(step(n, "set", "ok", to=[True]) for n in (1, 2))) == (2,)


def test_a_test_run_again_after_an_edit_is_no_repeat() -> None:
    def run(number: int) -> Step:
        return step(number, "run_shell", "1 failed", success=False, command="pytest")

    edit = step(2, "write_file", path="a.py", content="x = 1")
    assert repeated(run(1), edit, run(3)) == ()
    failed_edit = edit.model_copy(update={"success": False})
    assert repeated(run(1), failed_edit, run(3)) == (3,)
    assert repeated(run(1), edit, run(3), run(4)) == (4,)


def test_a_call_that_brings_something_new_each_time_is_no_repeat() -> None:
    pages = [step(n, "scroll", f"page {n}", direction="down") for n in range(1, 4)]
    assert repeated(*pages) == ()
    assert repeated(*pages, step(4, "scroll", "page 3", direction="down")) == (4,)


def test_two_calls_in_turn_over_and_over_are_a_loop() -> None:
    turns = [step(n, "read_file", f"text {n % 2}", path=f"{n % 2}") for n in range(1, 9)]
    assert repeated(*turns) == (4, 5, 6, 7, 8)


# -- grounding ------------------------------------------------------------------------------------


def grounding(*steps: Step, **fields: Any) -> tuple[float, tuple[int, ...]] | None:
    found = of("grounding", *steps, **fields)
    return (found.points, found.steps) if found else None


@pytest.mark.parametrize(
    ("arguments", "points"),
    [
        ({"city": "Kyoto"}, 1),
        ({"city": " kyoto "}, 1),
        ({"city": "Osaka"}, 0),
        ({"city": "京都"}, 1),
        ({"city": "大阪"}, 0),
        ({"id": 4711}, 1),
        ({"id": 471}, 0),  # a part of another number
        ({"id": "471"}, 0),
        ({"price": 1250}, 1),  # it says 1,250
        ({"price": 1250.0}, 1),
        ({"rate": 3.75}, 1),
        ({"rate": 3.7}, None),  # two digits could be anything
        ({"pair": ["Kyoto", "Osaka"]}, 0.5),
        ({"to": {"where": {"city": "Osaka"}, "zip": "6008216"}}, 0.5),
        ({"city": "Kyoto", "code": "print('Osaka')"}, 1),
        ({"content": {"anything": "Osaka"}}, None),
        ({"text": "Osaka", "query": "hotels in Osaka"}, None),
        ({"name": "one two three four five six seven eight nine"}, None),
        ({"name": "x" * 201}, None),
        ({"name": "Osaka\nNara"}, None),
        ({"name": "no"}, None),
        ({"x": 512, "y": 999, "timeout": 300}, None),
        ({"yes": True, "no": None, "n": 12, "of": 10**30}, None),
        ({}, None),
    ],
)
def test_a_value_is_grounded_if_the_task_says_it(
    arguments: dict[str, Any], points: float | None
) -> None:
    said = "Book a room in Kyoto (京都, 6008216) for guest 4711 at 1,250 and a rate of 3.75."
    found = grounding(step(1, "book", **arguments), description=said)
    assert found == (None if points is None else (points, (1,) if points < 1 else ()))


def test_what_was_seen_before_grounds_and_what_comes_later_does_not() -> None:
    listing = step(1, "list_files", "notes.txt  todo.txt")
    early, late = step(1, path="notes.txt"), step(2, path="notes.txt")
    assert grounding(listing, late) == (1, ())
    assert grounding(early, step(2, "list_files", "notes.txt")) == (0, (1,))
    assert grounding(step(1, seen="found notes.txt", path="notes.txt")) == (0, (1,))
    assert grounding(early, late, step(3, path="notes.txt")) == (0, (1,)), "a guess is one guess"


def test_how_it_calls_what_it_creates_is_not_made_up() -> None:
    """Neither where it is created nor from then on."""
    reads = step(2, path="solution.py")
    calls: dict[str, dict[str, Any]] = {
        "write_file": {"path": "solution.py", "content": "x"},
        "save": {"path": "solution.py"},
        "edit": {"file_path": "solution.py", "file_text": "x"},
        "convert": {"path": "given.csv", "output_path": "solution.py"},
    }
    for tool, arguments in calls.items():
        creates = step(1, tool, **arguments)
        assert grounding(creates, reads, description="Read given.csv.") in (None, (1, ())), tool
        said = grounding(creates, step(2, path="other.py"), description="Read given.csv.")
        assert said is not None and said[1] == (2,)
    in_vain = step(1, "write_file", success=False, path="/no/such/place", content="x")
    assert grounding(in_vain) == (0, (1,))
    assert grounding(step(1, "create_user", name="Zaphod", path="zaphod")) == (0, (1,))


def test_a_comment_does_not_vouch_for_what_was_made_up() -> None:
    program = step(1, "run_python", code="# see /made/up.txt and order A-4711")
    assert grounding(program, step(2, "find", order="A-4711")) == (0, (2,))
    assert grounding(program, step(2, success=False, path="/made/up.txt")) == (0, (2,))


def test_a_file_that_its_program_wrote_and_that_is_there_is_not_made_up() -> None:
    program = step(1, "run_python", code="open('notes.txt', 'w').write('x')")
    reads = step(2, path="notes.txt")
    assert grounding(program, reads) == (1, ())
    assert grounding(reads.model_copy(update={"step_id": 1}), program) == (0, (1,))


@often
@given(value=st.text("1a-", min_size=3, max_size=5), seen=st.text("1a- ", max_size=40))
def test_a_number_is_there_only_as_a_whole(value: str, seen: str) -> None:
    starts, ends = value[0].isdecimal(), value[-1].isdecimal()
    whole = (r"(?<!\d)" if starts else "") + re.escape(value) + (r"(?!\d)" if ends else "")
    found = grounding(step(1, "look", seen), step(2, "find", item=value))
    assert found == ((1, ()) if re.search(whole, seen) else (0, (2,)))


def test_upper_and_lower_case_are_the_same_wherever_they_stand() -> None:
    looks = step(1, "look", "İSTANBUL İİİ\nÇankaya"), step(2, "look", "Ünye 4711")
    for value in ("çankaya", "ÇANKAYA", "ünye", "istanbul", 4711):
        assert grounding(*looks, step(3, "go", to="nowhere", then=value)) == (0.5, (3,)), value
    assert grounding(*looks, step(3, "go", to="nowhere", then="unye")) == (0, (3,))


def test_what_the_prompt_and_the_tools_say_grounds_and_what_the_model_says_does_not() -> None:
    call = step(1, "convert", unit="celsius")
    tool = {
        "type": "function",
        "function": {
            "name": "convert",
            "parameters": {"properties": {"unit": {"enum": ["celsius", "kelvin"]}}},
        },
    }
    assert grounding(call) == (0, (1,))
    assert grounding(call, tools=(tool,)) == (1, ())
    user = {"role": "user", "content": [{"type": "text", "text": "In Celsius, please."}]}
    assert grounding(call, messages=({"role": "system", "content": "s"}, user)) == (1, ())
    answer = {"role": "assistant", "content": "I take celsius."}
    assert grounding(call, messages=({"role": "system", "content": "s"}, answer, user)) == (0, (1,))
    hinted = Assignment(task=task(), hints=("Use celsius.",))
    assert grounding(call, assignment=hinted) == (1, ())


# -- efficiency -----------------------------------------------------------------------------------


def test_efficiency_is_against_the_fewest_steps_of_those_that_passed() -> None:
    four = [step(n, path=str(n)) for n in range(1, 5)]
    passed = made_of(*four, verdict=Verdict(passed=True, reward=1.0))

    def against(*siblings: Try, who: Trajectory = passed) -> float | None:
        found = measure(who, siblings).get("efficiency")
        return found.points if found else None

    assert against() is None
    assert against(tried(False, 1), tried(None, 1)) is None
    assert against(tried(False, 1), tried(True, 3), tried(True, 9)) == 0.75
    assert against(tried(True, 9)) == 1
    assert against(tried(True, 0)) == 0.25
    failed = passed.model_copy(update={"verdict": Verdict(passed=False)})
    assert against(tried(True, 3), who=failed) is None


# -- speed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_five_hundred_steps_with_long_results_are_measured_at_once(known: bool) -> None:
    """The worst case: each step passes values of its own, and 8 MiB lie before the last."""

    def result(n: int) -> str:
        return f"row-{n} {'x' if known else n}" + "the quick brown fox " * 819

    steps = [
        step(n, seen=result(n), path=f"row-{n - 1}" if known else f"made-up-{n}", item=1000 + n)
        for n in range(1, 501)
    ]  # fmt: skip
    trajectory = made_of(*steps)
    took = []
    for _ in range(3):
        began = time.process_time()
        found = measure(trajectory)["grounding"]
        took.append(time.process_time() - began)
    assert found.points == (pytest.approx(0.5, abs=0.3) if known else 0), "of an even sample"
    assert min(took) < 0.25, "about 0.03 s on a machine that does nothing else"


WORST: dict[str, Callable[[int], tuple[str, dict[str, Any]]]] = {
    "digits": lambda n: ("1" * 16_000, {"path": "1" * (3 + n % 40), "id": f"x{n}"}),
    "numbers inside": lambda n: ("x11" * 5300, {"a": "x" + "1" * (3 + n % 40), "b": f"x1{n}"}),
    "almost there": lambda n: ("a" * 16_000, {"a": "a" * 50 + "b" + "a" * (n % 90)}),
    "not in ASCII": lambda n: ("京都大" * 5300, {"a": "京" * (n % 50) + "A", "b": f"京都{n}B"}),
    "many values": lambda n: ("row 1 x " * 2000, {"a": [f"row {n} {k}" for k in range(1000)]}),
}


@pytest.mark.parametrize("steps", [50, 500])
@pytest.mark.parametrize("case", WORST)
def test_no_record_takes_long_to_ground(case: str, steps: int) -> None:
    made = []
    for n in range(1, steps + 1):
        seen, arguments = WORST[case](n)
        made.append(step(n, "look", seen, **arguments))
    trajectory = made_of(*made)
    began = time.process_time()
    assert grounded(trajectory) is not None
    assert time.process_time() - began < 0.6, "0.08-0.2 s on a machine that does nothing else"
