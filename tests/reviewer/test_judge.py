"""What a judge is asked, and who may be one."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from common.review import Judgement, JudgeReport
from common.task import Assignment, StdoutCheck
from common.trajectory import Agent, CheckResult, Trajectory, Verdict
from reviewer.judge.names import kin
from reviewer.judge.panel import agreed
from tests.helpers import task
from tests.reviewer.judges import (
    ASKED,
    RUBRIC,
    Model,
    acted,
    criterion_of,
    grade,
    panel,
)


async def test_each_question_is_about_one_criterion_and_is_asked_in_every_round() -> None:
    model = Model()
    report = await panel(model).grade(acted("1"), RUBRIC)
    asked = Counter(criterion_of(messages) for messages, _ in model.asked)
    assert asked == {"tools": 3, "errors": 3}  # and not what signals alone decide
    for messages, _ in model.asked:
        assert sum(question in messages[0]["content"] for question in ASKED) == 1
    assert [one.criterion for one in report.judgements] == ["tools", "errors"]
    assert {(s.temperature, s.seed) for _, s in model.asked} == {(0, 1), (0, 2), (0, 3)}
    assert report.usage.calls == 6
    assert report.usage.cost_usd == 1.5
    assert model.accounts == {"code"}


async def test_no_question_tells_who_acted_which_try_it_was_or_what_was_found() -> None:
    secret = task(
        "named-task", checks=[{"type": "stdout", "expected": "EXPECTED"}], max_iterations=7
    )
    trajectory = acted(
        "1",
        agent=Agent(kind="llm", model="acting-model", provider="acting-provider"),
        assignment=Assignment(task=secret, revision=4, hints=("HINT.",)),
        revision=4,
        verdict=Verdict(
            passed=False, reward=0, checks=(CheckResult(id="c-id", passed=False, detail="DETAIL"),)
        ),
        malformed_answers=2,
    )
    assert isinstance(trajectory.assignment.task.checks[0], StdoutCheck)
    model = Model()
    asked = panel(model, votes=1)
    await asked.grade(trajectory, RUBRIC)
    await asked.outcome(trajectory, RUBRIC)
    said = json.dumps([messages for messages, _ in model.asked])
    for secret_word in (
        "acting", "EXPECTED", "HINT", "c-id", "DETAIL", "revision", "iteration", "named-task",
        trajectory.attempt_id, trajectory.provenance.worker + '"', "passed", "verdict",
    ):  # fmt: skip
        assert secret_word not in said


async def test_what_is_sent_names_its_levels_and_the_form_of_the_answer() -> None:
    native, schema = Model(), Model(tool_mode="fenced")
    await panel(native, votes=1).outcome(acted("1"), RUBRIC)
    await panel(schema, votes=1).outcome(acted("1"), RUBRIC)
    assert "5: wholly\n4: nearly\n" in native.asked[0][0][0]["content"]
    assert "one call of the tool `grade`" in native.asked[0][0][0]["content"]
    assert '"tool": "grade"' in schema.asked[0][0][0]["content"]


def by(model: str, provider: str = "p") -> Trajectory:
    return acted("1", agent=Agent(kind="llm", model=model, provider=provider))


async def judges_of(trajectory: Trajectory, *models: Model) -> tuple[list[str], list[str], bool]:
    """Who grades, who says whether it was done, and whether one of them judges itself."""
    asked = panel(*models, votes=1)
    graded = await asked.grade(trajectory, RUBRIC)
    done = await asked.outcome(trajectory, RUBRIC)
    assert graded.own_model == done.own_model
    names = [sorted({one.model for one in report.judgements}) for report in (graded, done)]
    return names[0], names[1], done.own_model


async def test_nobody_judges_its_own_work_while_there_is_another() -> None:
    a, b, c = Model(model="a"), Model(model="b"), Model(model="c")
    assert await judges_of(by("a"), a, b, c) == (["p:b"], ["p:b", "p:c"], False)
    assert await judges_of(by("c"), a, b, c) == (["p:a"], ["p:a", "p:b"], False)
    assert await judges_of(by("a"), a, b) == (["p:b"], ["p:b"], False)
    assert await judges_of(by("a"), a) == (["p:a"], ["p:a"], True)


async def test_one_model_is_one_judge_whoever_serves_it() -> None:
    here, there = Model(model="a"), Model(model="Org/A", provider="q")
    other = Model(model="b")
    assert await judges_of(by("z"), here, there, other) == (["p:a"], ["p:a", "p:b"], False)
    assert await judges_of(by("org/a", "q"), here, other) == (["p:b"], ["p:b"], False)
    assert await judges_of(by("a"), there) == (["q:Org/A"], ["q:Org/A"], True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gpt-5.4-mini", "gpt-5.4-mini-2026-03-17"),
        ("claude-x", "anthropic/claude-x-20260317"),
        ("claude-x", "claude-x@20260317"),
        ("deepseek-r1", "deepseek-ai/DeepSeek-R1-0528"),
        ("grok-9", "grok-9-latest"),
        ("deepseek/deepseek-v4-pro", "deepseek-v4-pro:free"),
        ("qwen3:8b", "qwen3:latest"),
        ("Qwen/Qwen3-8B", "qwen3-8b"),
        ("Qwen3-8B-AWQ", "Qwen3-8B"),
        ("Qwen3-8B-GPTQ-Int4", "Qwen3-8B"),
        ("qwen3-8b-FP8", "qwen3-8b"),
        ("Qwen3-8B-Q4_K_M.gguf", "Qwen3-8B"),
        ("unsloth/Qwen3-8B-GGUF:Q4_K_M", "Qwen3-8B"),
        ("models/gemini-3.8-flash", "gemini-3.8-flash"),
        ("accounts/f/models/x", "x"),
        ("qwen3-8b/", "qwen3-8b"),
    ],
)
def test_a_model_is_one_whatever_its_date_tag_or_quantisation(one: str, other: str) -> None:
    assert kin(one) == kin(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gpt-5.4", "gpt-5.4-mini"),
        ("qwen3-8b", "qwen3-4b"),
        ("qwen3-30b-2507", "qwen3-30b"),
        ("gemini-3.8-flash", "gemini-3.9-flash"),
        ("fp8", "awq"),
    ],
)
def test_different_models_stay_different(one: str, other: str) -> None:
    assert kin(one) != kin(other)


async def test_a_model_under_two_names_does_not_agree_with_itself() -> None:
    pair = [Model(lambda *_: grade(5), model=f"m{date}") for date in ("", "-2026-03-17")]
    report = await panel(*pair).outcome(acted("1"), RUBRIC)
    assert len(report.judgements) == 1
    assert not agreed(report)


def judged(model: str, median: float | None, spread: float | None = 0) -> Judgement:
    return Judgement(criterion="outcome", model=model, median=median, spread=spread)


def test_two_different_models_have_to_agree_clearly() -> None:
    def ok(*judgements: Judgement, **fields: Any) -> bool:
        return agreed(JudgeReport(judgements=judgements, **fields))

    a, b = judged("p:a", 4), judged("q:b", 5, 1)
    assert ok(a, b)
    assert not ok(a)
    assert not ok()
    assert not ok(a, judged("q:a", 5))
    assert not ok(a, judged("q:b", 3.9))
    assert not ok(a, judged("q:b", 5, 1.5))
    assert not ok(a, judged("q:b", None, None))
    assert not ok(a, b, own_model=True)
    assert not ok(a, b, missing="the budget is spent")
