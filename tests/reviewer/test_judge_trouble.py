"""A judge that is away, refuses or is not paid for: what is heard, kept and asked again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from common.llm.types import ModelMisconfigured, ModelUnavailable
from common.quota.terms import BudgetExceeded
from common.review import Vote
from common.trajectory import Usage
from reviewer.judge import asking
from reviewer.judge.panel import agreed
from reviewer.rubric import Rubric
from tests.helpers import eventually
from tests.reviewer.judges import (
    RUBRIC,
    Model,
    acted,
    criterion_of,
    grade,
    panel,
)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_PAUSES", (0.0, 0.01))


class Failing:
    """Gives way at the calls of these numbers, counted from 1, and grades at the others."""

    def __init__(self, error: Exception, *numbers: int) -> None:
        self.error, self.numbers, self.calls = error, set(numbers), 0

    def __call__(self, *_: Any) -> Any:
        self.calls += 1
        return self.error if self.calls in self.numbers else grade(4)


async def test_a_call_that_gives_way_is_made_again_alone() -> None:
    says = Failing(ModelUnavailable("502"), 2, 3)
    report = await panel(Model(says)).grade(acted("1"), RUBRIC)
    assert says.calls == 6 + 2
    assert (report.missing, report.usage.calls) == (None, 6)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_a_provider_is_left_alone_for_as_long_as_it_asks() -> None:
    says = Failing(ModelUnavailable("503", retry_after=0.2), 1)
    started = time.monotonic()
    report = await panel(Model(says), votes=1).outcome(acted("1"), RUBRIC)
    assert (says.calls, report.missing) == (2, None)
    assert time.monotonic() - started >= 0.2


async def test_a_provider_that_stays_away_goes_up_and_what_was_answered_is_kept() -> None:
    says = Failing(ModelUnavailable("502"), 3, 4, 5, 6, 7, 8)
    asked = panel(Model(says))
    with pytest.raises(ModelUnavailable):
        await asked.grade(acted("1"), RUBRIC)
    made = says.calls
    assert made <= 2 + 6  # two questions, each of which gave way three times at the most
    says.numbers = set()
    report = await asked.grade(acted("1"), RUBRIC)
    assert says.calls == made + 4
    assert [one.median for one in report.judgements] == [4, 4]
    assert report.usage.calls == 6  # those of the first time are paid for, and told
    again = await asked.grade(acted("1"), RUBRIC)  # what is reported is not reported again
    assert (says.calls, again.usage.calls) == (made + 10, 6)


async def test_what_was_answered_by_other_levels_is_asked_anew() -> None:
    says = Failing(ModelUnavailable("502"), 2, 3, 4)
    asked = panel(Model(says))
    with pytest.raises(ModelUnavailable):
        await asked.outcome(acted("1"), RUBRIC)
    levels = {n: f"level {n} of another rubric" for n in range(1, 6)}
    said = RUBRIC.model_dump()
    changed = Rubric.model_validate({**said, "outcome": {**said["outcome"], "anchors": levels}})
    report = await asked.outcome(acted("1"), changed)
    assert (says.calls, report.usage.calls) == (4 + 3, 3)


@pytest.mark.parametrize(("away", "pause"), [("errors", 60.0), ("tools", 0.0)])
async def test_who_is_away_is_not_asked_again_once_another_call_came_to_nothing(
    monkeypatch: pytest.MonkeyPatch, away: str, pause: float
) -> None:
    """Nor waited for, where the other call, about tools, came to nothing first."""
    monkeypatch.setattr(asking, "_PAUSES", (pause, pause))

    def says(messages: list[dict[str, Any]], _: int) -> Any:
        if criterion_of(messages) == away:
            return ModelUnavailable("502")
        return ModelMisconfigured("401")

    model = Model(says)
    async with asyncio.timeout(20):
        with pytest.raises(ModelMisconfigured):
            await panel(model).grade(acted("1"), RUBRIC)
    assert len(model.asked) == 2


async def test_one_judge_that_is_away_costs_the_other_nothing() -> None:
    away = Failing(ModelUnavailable("502"), 1, 2, 3)
    there, other = Model(), Model(away, model="other")
    asked = panel(there, other)
    with pytest.raises(ModelUnavailable):
        await asked.outcome(acted("1"), RUBRIC)
    assert (await asked.outcome(acted("1"), RUBRIC)).usage.calls == 6
    assert len(there.asked) == 3


async def test_a_spent_budget_ends_the_questions_and_keeps_what_was_heard() -> None:
    says = Failing(BudgetExceeded("nothing is left"), *range(5, 100))
    report = await panel(Model(says)).grade(acted("1"), RUBRIC)
    assert report.missing == "the budget is spent: nothing is left"
    assert (report.usage.calls, report.usage.cost_usd) == (4, 1.0)
    assert [one.median for one in report.judgements] == [4, 4]
    assert says.calls <= 6
    assert not agreed(report)


async def test_a_refused_key_ends_it() -> None:
    model = Model(lambda *_: ModelMisconfigured("401"))
    with pytest.raises(ModelMisconfigured):
        await panel(model).grade(acted("1"), RUBRIC)
    assert len(model.asked) <= 2


async def test_many_attempts_are_asked_about_in_turn() -> None:
    model = Model()
    model.held = asyncio.Event()
    asked = panel(model, votes=1)
    reports = [
        asyncio.create_task(asked.outcome(acted("1", attempt_id=f"a{n}"), RUBRIC))
        for n in range(40)
    ]
    one_answered = asking.AT_ONCE + 1
    await eventually(lambda: len(model.asked) == one_answered, "as many as may are asked")
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(model.asked) == one_answered
    model.held.set()
    assert [report.usage.calls for report in await asyncio.gather(*reports)] == [1] * 40


def test_votes_are_kept_for_so_many_and_the_oldest_go_first() -> None:
    kept = asking.Kept(2)
    one = Vote(round=1, window=1, score=5)
    keys = [("t", f"a{n}", "p:judge", "outcome", 1, 1) for n in range(3)]
    for key in keys:
        kept.get(keys[0])  # reading makes it no younger
        kept.put(key, one, Usage())
    assert [kept.get(key) is not None for key in keys] == [False, True, True]


async def test_a_judge_that_is_cut_short_leaves_nothing_running() -> None:
    model = Model()
    model.held = asyncio.Event()
    other = Model(model="other")
    other.held = model.held
    under_way = asyncio.create_task(panel(model, other).outcome(acted("1"), RUBRIC))
    await eventually(lambda: len(model.asked) == 2 and len(other.asked) == 2, "both are asked")
    under_way.cancel()
    with pytest.raises(asyncio.CancelledError):
        await under_way
    assert (model.cancelled, other.cancelled) == (1, 1)
