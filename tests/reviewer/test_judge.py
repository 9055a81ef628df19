"""What a judge is asked, what counts as its answer, and who may be one."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.llm.types import Capabilities, ModelUnavailable
from common.quota.terms import BudgetExceeded
from common.review import Judgement, JudgeReport, Vote
from common.task import Assignment, StdoutCheck
from common.trajectory import Agent, CheckResult, Trajectory, Verdict
from reviewer.judge.panel import Panel, agreed
from reviewer.judge.vote import read
from reviewer.judge.windows import windows
from tests.helpers import eventually, task
from tests.reviewer.judges import (
    ASKED,
    RUBRIC,
    Model,
    acted,
    criterion_of,
    grade,
    message_of,
    parted,
    reply_of,
)

NATIVE = Capabilities(tool_mode="native")
SCHEMA = Capabilities(tool_mode="schema")


def panel(*models: Model, votes: int = 3, **more: Any) -> Panel:
    return Panel(models, votes=votes, deadline=5, **more)


def vote(said: Any, *, capabilities: Capabilities = NATIVE, steps: int = 3) -> Vote:
    (window,) = windows(acted(*("x" for _ in range(steps))), 48_000)
    return read(reply_of(message_of(said), capabilities), window, number=1)


# -- what is asked -------------------------------------------------------------------------------


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


# -- what counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (grade("4"), "integer"),
        (grade(4.0), "integer"),
        (grade(True), "integer"),
        (grade(0), "integer"),
        (grade(6), "integer"),
        (grade(100), "integer"),
        (grade(None), "neither"),
        (grade(4, unknown=True), "both"),
        (grade(4, unknown="no"), "neither true nor false"),
        (grade(reason=""), "no reason"),
        (grade(reason=None), "no reason"),
        (grade(evidence=()), "no step"),
        (grade(evidence=(9,)), "do not exist: 9"),
        (grade(evidence=(1, 9)), "do not exist: 9"),
        (grade(evidence=("1",)), "list of step numbers"),
        (grade(evidence=(True,)), "list of step numbers"),
        (grade(evidence="1"), "list of step numbers"),
        (grade(None, unknown=True, evidence=(9,)), "do not exist"),
        ("I would say 5 of 5.", "no call"),
        ('{"score": 5', "unreadable"),
        ("", "no call"),
    ],
)
def test_an_answer_that_breaks_the_rules_is_no_vote_and_says_why(said: Any, why: str) -> None:
    found = vote(said)
    assert found.score is None
    assert found.invalid is not None
    assert why in found.invalid


def test_unknown_is_an_answer_but_no_score() -> None:
    found = vote(grade(None, unknown=True, evidence=()))
    assert (found.score, found.invalid) == (None, None)


@pytest.mark.parametrize("capabilities", [NATIVE, SCHEMA])
def test_a_model_may_write_its_grade_as_one_json_object(capabilities: Capabilities) -> None:
    said = grade(3, evidence=(2, 2, 1))
    called = json.dumps({"thought": "Hm.", "tool": "grade", "arguments": said})
    for text in (called, json.dumps(said), f"```json\n{json.dumps(said)}\n```"):
        found = vote(text, capabilities=capabilities)
        assert (found.score, found.evidence, found.invalid) == (3, (2, 1), None)


def test_two_grades_in_one_answer_are_none() -> None:
    message = message_of(grade(5))
    message["tool_calls"] *= 2
    (window,) = windows(acted("x"), 48_000)
    found = read(reply_of(message, NATIVE), window, number=1)
    assert found.invalid == "2 calls instead of one"


def test_an_attempt_without_steps_is_graded_without_evidence() -> None:
    assert vote(grade(2, evidence=()), steps=0).score == 2
    assert vote(grade(2, evidence=(1,)), steps=0).invalid is not None


def test_a_vote_rests_on_a_step_that_its_window_shows() -> None:
    first, *_ = windows(acted("x" * 3000, "y" * 3000, "z" * 3000), 5_000)
    assert first.shown == {1}
    assert read(reply_of(message_of(grade(evidence=(3,))), NATIVE), first, number=1).invalid
    assert read(reply_of(message_of(grade(evidence=(1, 3))), NATIVE), first, number=1).score == 4


(THREE_STEPS,) = windows(acted("x", "y", "z"), 48_000)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)
ODD = (
    None, True, False, 0, -1, 6, 10**30, 3.5, float("nan"), float("inf"), "", "5", "\ud800", "字",
    [], [1], ["1"], [[1]], {}, {"score": 5},
)  # fmt: skip
"""Whatever a field may hold that it should not."""
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "reason": st.sampled_from(["Because.", "Because.", *ODD]),
        "evidence": st.sampled_from([[1], [1, 2], [3, 3], [4], [1, 4], *ODD]),
        "score": st.sampled_from([1, 2, 3, 4, 5, *ODD]),
        "unknown": st.sampled_from([False, False, False, True, *ODD]),
        "arguments": st.sampled_from(ODD),
    },
)
ANSWERS = st.one_of(
    NEARLY,
    JSON,
    st.text(max_size=30),
    NEARLY.map(json.dumps),
    NEARLY.map(lambda said: json.dumps({"tool": "grade", "arguments": said})),
    NEARLY.map(lambda said: f"```json\n{json.dumps(said)}\n```"),
)


@settings(max_examples=1000, deadline=None)
@given(ANSWERS, st.sampled_from([NATIVE, SCHEMA]), st.sampled_from(["stop", "length"]))
def test_whatever_a_judge_answers_is_a_vote_from_1_to_5_or_none(
    said: Any, capabilities: Capabilities, finish: str
) -> None:
    found = read(reply_of(message_of(said), capabilities, finish), THREE_STEPS, number=1)
    assert found.score in (None, 1, 2, 3, 4, 5)
    assert type(found.score) is not bool
    if found.score is not None:
        assert found.invalid is None
        assert found.reason
        assert found.evidence
        assert set(found.evidence) <= {1, 2, 3}


# -- what answers come to ------------------------------------------------------------------------


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
    (one,) = (await asked.outcome(acted("1"), RUBRIC)).judgements
    assert (one.median, one.spread) == (3, 0)
    assert sorted(heard) == ["invalid", "unknown", "vote"]
    mute = panel(Model(lambda *_: "nonsense"))
    (one,) = (await mute.outcome(acted("1"), RUBRIC)).judgements
    assert (one.median, one.spread) == (None, None)


async def test_windows_count_by_the_steps_they_show_and_only_if_they_voted() -> None:
    def says(messages: list[dict[str, Any]], _: int) -> Any:
        rows = [json.loads(line) for line in parted(messages)[1]]
        shown = [row["step"] for row in rows if "step" in row]
        if 4 in shown:
            return grade(None, unknown=True)
        return grade(5 if 1 in shown else 2, evidence=shown)

    # Windows of 6,144 bytes: steps 1 and 2, step 3, and the parts of step 4.
    trajectory = acted("a" * 1500, "b" * 1500, "c" * 3000, "d" * 9000)
    (one,) = (await panel(Model(says, max_context=4096), votes=1).outcome(trajectory, RUBRIC)).of(
        "outcome"
    )
    assert [v.score for v in one.votes] == [5, 2, *[None] * (len(one.votes) - 2)]
    assert len(one.votes) > 3
    assert one.median == (2 * 5 + 1 * 2) / 3


# -- who judges ----------------------------------------------------------------------------------


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


def judged(model: str, median: float | None, spread: float | None = 0, **fields: Any) -> Judgement:
    return Judgement(criterion="outcome", model=model, median=median, spread=spread, **fields)


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
    mostly_mute = (Vote(round=1, window=1, score=5), *(Vote(round=n, window=1) for n in (2, 3)))
    assert not ok(a, judged("q:b", 5, votes=mostly_mute))


# -- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ModelUnavailable("gone"), BudgetExceeded("spent")])
async def test_trouble_is_nobodys_grade_and_ends_the_other_questions(error: Exception) -> None:
    model = Model(lambda *_: error)
    model.held = asyncio.Event()
    with pytest.raises(type(error)):
        await panel(model).grade(acted("1"), RUBRIC)
    assert model.cancelled == 1


async def test_a_judge_that_is_cut_short_leaves_nothing_running() -> None:
    model = Model()
    model.held = asyncio.Event()
    other = Model(model="other")
    other.held = model.held
    asking = asyncio.create_task(panel(model, other).outcome(acted("1"), RUBRIC))
    await eventually(lambda: len(model.asked) == 2 and len(other.asked) == 2, "both are asked")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (model.cancelled, other.cancelled) == (1, 1)
