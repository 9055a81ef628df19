"""Whom the reviewer asks: waited for while away, but not for ever, and never made up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.llm.types import ModelRefused, ModelUnavailable
from common.metrics import Metrics
from common.trajectory import Trajectory, Verdict
from reviewer import counsel as module
from reviewer.counsel import Counsel
from reviewer.judge import asking
from tests.reviewer.endings import FAILED, PASSED, ended, of, step
from tests.reviewer.judges import RUBRIC, Model, grade


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES", (0.01, 0.02))
    monkeypatch.setattr(asking, "_PAUSES", (0.01, 0.02))


def attempt(verdict: Verdict = PASSED) -> Trajectory:
    return ended(verdict, steps=(step(1), step(2, argument=1)))


def judged_by(says: Any, **more: Any) -> tuple[Counsel, Model]:
    model = Model(says)
    return Counsel(judges=[model], votes=1, **more), model


async def test_a_judge_that_comes_back_is_waited_for() -> None:
    away, metrics = iter([True] * 20), Metrics()

    def says(*_: Any) -> Any:
        return ModelUnavailable("away") if next(away, False) else grade(5)

    counsel, _ = judged_by(says, patience=60.0, metrics=metrics)
    report = await asyncio.wait_for(counsel.report(attempt(), RUBRIC), 20)
    assert report is not None and report.missing is None
    assert {j.median for j in report.judgements} == {5}
    votes = metrics.registry.get_sample_value("fleet_judge_answers_total", {"result": "vote"})
    assert votes == len(report.judgements)


async def test_an_outage_without_end_holds_reviews_up_once_and_is_told() -> None:
    counsel, model = judged_by(lambda *_: ModelUnavailable("away"), patience=0.5)
    asked = []
    for _ in range(3):
        before = len(model.asked)
        report = await asyncio.wait_for(counsel.report(attempt(), RUBRIC), 20)
        asked.append(len(model.asked) - before)
        assert report is not None and report.missing is not None
        assert "away" in report.missing
        said = of(attempt(), report=report).review
        assert said.second_look is not None and "not heard" in said.second_look
    assert asked[1] == asked[2] < asked[0]


async def test_a_judge_that_refuses_is_no_vote_and_a_person_should_look() -> None:
    counsel, _ = judged_by(lambda *_: ModelRefused("its filter"))
    report = await counsel.report(attempt(), RUBRIC)
    assert report is not None and report.missing is not None
    assert all(j.median is None for j in report.judgements)
    assert of(attempt(), report=report).review.second_look is not None


async def test_what_became_of_a_models_suggestions_is_counted() -> None:
    metrics = Metrics()
    counsel = Counsel(proposer=Model(lambda *_: "no list"), metrics=metrics)
    assert await counsel.suggestions(attempt(FAILED)) == ()
    counted = metrics.registry.get_sample_value
    assert counted("fleet_suggestions_total", {"result": "unreadable"}) == 1


async def test_nobody_asks_a_judge_about_what_failed_or_was_scripted() -> None:
    counsel, model = judged_by(lambda *_: grade(5))
    assert await counsel.report(attempt(FAILED), RUBRIC) is None
    assert await counsel.report(ended(PASSED, agent="oracle"), RUBRIC) is None
    assert model.asked == []
