"""What the answers of a judge come to: windows make a round, rounds a grade."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.llm.types import ModelRefused
from reviewer.judge.panel import agreed
from tests.reviewer.judges import (
    RUBRIC,
    Model,
    acted,
    criterion_of,
    grade,
    panel,
    parted,
)


async def test_the_median_of_the_rounds_counts_and_their_spread_is_kept() -> None:
    scores = {1: 2, 2: 5, 3: 4}
    report = await panel(Model(lambda _, seed: grade(scores[seed]))).outcome(acted("1"), RUBRIC)
    (one,) = report.of("outcome")
    assert (one.model, one.median, one.spread) == ("p:judge", 4, 3)
    assert [(v.round, v.score) for v in one.votes] == [(1, 2), (2, 5), (3, 4)]


async def test_a_round_without_a_vote_does_not_count_and_no_round_is_no_grade() -> None:
    heard: list[str] = []
    answers = {1: grade(3), 2: "nonsense", 3: grade(None, unknown=True)}
    asked = panel(Model(lambda _, seed: answers[seed]), heard=heard.append)
    one, other = (await asked.grade(acted("1"), RUBRIC)).judgements
    assert (one.median, one.spread) == (other.median, other.spread) == (3, 0)
    assert sorted(heard) == ["invalid"] * 2 + ["unknown"] * 2 + ["vote"] * 2
    # Whether it was done, one round of three cannot say.
    (one,) = (await asked.outcome(acted("1"), RUBRIC)).judgements
    assert (one.median, one.spread) == (None, None)
    mute = await panel(Model(lambda *_: "nonsense")).grade(acted("1"), RUBRIC)
    assert [one.median for one in mute.judgements] == [None, None]
    assert mute.missing == "no grade for tools, errors: no call of grade"


async def test_a_criterion_without_a_grade_is_named_with_the_reason() -> None:
    def says(messages: list[dict[str, Any]], _: int) -> Any:
        if criterion_of(messages) == "errors":
            return ModelRefused("content filter")
        return grade(4)

    model = Model(says)
    report = await panel(model).grade(acted("1"), RUBRIC)
    assert report.missing == "no grade for errors: the judge refused: content filter"
    assert [one.median for one in report.judgements] == [4, None]
    assert {vote.invalid for vote in report.of("errors")[0].votes} == {
        "the judge refused: content filter"
    }
    assert len(model.asked) == 4  # with another seed it would be refused again
    unsure = panel(Model(lambda *_: grade(None, unknown=True, evidence=())))
    found = (await unsure.outcome(acted("1"), RUBRIC)).missing
    assert found == "no grade for outcome: unknown by what was shown"


LONG = acted("a" * 1500, "b" * 1500, "c" * 3000, "d" * 3600)
"""In windows of 6,144 bytes: steps 1 and 2, step 3, step 4 and how it ended."""


def by_window(*said: Any, model: str = "judge") -> Model:
    """Say of each window of LONG what is there for it; a number is a grade."""

    def says(messages: list[dict[str, Any]], _: int) -> Any:
        rows = [json.loads(line) for line in parted(messages)[1]]
        shown = [row["step"] for row in rows if "step" in row]
        one = said[0 if 1 in shown else 1 if 3 in shown else 2]
        return grade(one, evidence=shown) if isinstance(one, int) else one

    return Model(says, model=model, max_context=4096)


UNKNOWN = grade(None, unknown=True, evidence=())


async def test_windows_count_by_the_steps_they_show_and_only_if_they_voted() -> None:
    asked = panel(by_window(5, 2, UNKNOWN), votes=1)
    (one, _) = (await asked.grade(LONG, RUBRIC)).judgements
    assert [v.score for v in one.votes] == [5, 2, None]
    assert one.median == round((2 * 5 + 1 * 2) / 3, 4)
    # Steps 3 and 4 and the end are three of five: step 3 alone has no say for all.
    asked = panel(by_window("nonsense", 2, UNKNOWN), votes=1)
    report = await asked.grade(LONG, RUBRIC)
    assert [one.median for one in report.judgements] == [None, None]


async def test_windows_that_contradict_each_other_are_no_grade_of_one_mind() -> None:
    (one, _) = (await panel(by_window(5, 5, 2)).grade(LONG, RUBRIC)).judgements
    assert (one.median, one.spread) == (3.8, 3)
    (one, _) = (await panel(by_window(5, 5, 3)).grade(LONG, RUBRIC)).judgements
    assert (one.median, one.spread) == (4.2, 0)


@pytest.mark.parametrize(
    ("said", "median"),
    [
        ((5, 5, 5), 5),
        ((5, UNKNOWN, 4), 4),
        ((5, 5, 1), 1),  # what was done at first is undone at the end
        ((1, 5, 5), 1),
        ((5, 5, UNKNOWN), None),  # how it ended, only the last can say
        ((5, 5, "nonsense"), None),
        ((5, "nonsense", 5), None),
        ((UNKNOWN, UNKNOWN, 5), None),  # two of five
    ],
)
async def test_a_long_attempt_is_done_only_if_no_part_of_it_says_otherwise(
    said: tuple[Any, ...], median: float | None
) -> None:
    report = await panel(by_window(*said), by_window(*said, model="b")).outcome(LONG, RUBRIC)
    assert [one.median for one in report.of("outcome")] == [median] * 2
    assert agreed(report) is (median in (4, 5))
