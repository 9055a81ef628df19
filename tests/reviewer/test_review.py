"""What the reviewer decides: the verifier comes first, and nothing changes without a rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.failures import Failure, FailureKind
from common.review import Proposal
from common.task import Assignment, RevisionScore, Task
from common.trajectory import (
    Action,
    Agent,
    CheckResult,
    Observation,
    Step,
    StopReason,
    Trajectory,
    Verdict,
)
from reviewer.hints import HINTS
from reviewer.levels import level
from reviewer.review import Reviewed, propose, review
from tests.exporters.attempts import attempt
from tests.helpers import task

often = settings(max_examples=80, deadline=None)

PASSED = Verdict(passed=True, reward=1.0, checks=(CheckResult(id="c", passed=True, reward=1.0),))
FAILED = Verdict(passed=False, reward=0.0, checks=(CheckResult(id="c", passed=False),))


def step(number: int, tool: str = "run_python", argument: int = 0, *, success: bool = True) -> Step:
    return Step(
        step_id=number,
        action=Action(tool=tool, arguments={"code": argument}, call_id=f"c{number}"),
        observation=Observation(text=""),
        success=success,
        exit_code=0 if success else 1,
        started_at=1.0,
        duration=0.1,
    )


def ended(
    verdict: Verdict = FAILED,
    *,
    steps: tuple[Step, ...] = (step(1),),
    assignment: Assignment | None = None,
    agent: str = "llm",
    **fields: Any,
) -> Trajectory:
    """An attempt that ended with this verdict; its task has one check, as most have."""
    assignment = assignment or Assignment(task=judged())
    return attempt(
        steps=steps,
        verdict=verdict,
        assignment=assignment,
        revision=assignment.revision,
        agent=Agent.model_validate({"kind": agent}),
        **fields,
    )


def judged(**fields: Any) -> Task:
    return task(**{"checks": [{"type": "stdout", "expected": "1"}], **fields})


def of(trajectory: Trajectory) -> Reviewed:
    return review(trajectory, reviewer="r", now=5.0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["run_python", "run_shell", "finish"]), st.integers(0, 2), st.booleans()
    ),
    max_size=8,
).map(lambda all_: tuple(step(i, t, a, success=s) for i, (t, a, s) in enumerate(all_, 1)))
REWARDS = st.none() | st.floats(0, 1)
STOPS = st.sampled_from(list(StopReason))


# -- score ----------------------------------------------------------------------------------------


@often
@given(
    steps=STEPS, malformed=st.integers(0, 9), reward=REWARDS, stop=STOPS,
    threshold=st.integers(0, 100),
)  # fmt: skip
def test_a_failed_check_is_never_made_up_for_by_manners(
    steps: tuple[Step, ...], malformed: int, reward: float | None, stop: StopReason, threshold: int
) -> None:
    verdict = Verdict(passed=False, reward=reward)
    assignment = Assignment(task=judged(threshold=threshold))
    said = of(
        ended(verdict, steps=steps, malformed_answers=malformed, stop_reason=stop,
              assignment=assignment)
    ).review  # fmt: skip
    assert said.score is not None
    assert 0 <= said.score <= 49
    assert said.decision in ("iterate", "rejected")


@often
@given(
    steps=STEPS, malformed=st.integers(0, 9), reward=REWARDS, stop=STOPS,
    threshold=st.integers(0, 100),
)  # fmt: skip
def test_what_passed_scores_at_least_half_and_is_accepted_from_the_threshold(
    steps: tuple[Step, ...], malformed: int, reward: float | None, stop: StopReason, threshold: int
) -> None:
    verdict = Verdict(passed=True, reward=reward)
    assignment = Assignment(task=judged(threshold=threshold))
    said = of(
        ended(verdict, steps=steps, malformed_answers=malformed, stop_reason=stop,
              assignment=assignment)
    ).review  # fmt: skip
    assert said.score is not None
    assert 50 <= said.score <= 100
    assert (said.decision == "accepted") is (said.score >= threshold)


@often
@given(steps=STEPS, reward=REWARDS, agent=st.sampled_from(["llm", "oracle", "nop"]))
def test_what_nobody_verified_goes_to_a_person_without_a_score(
    steps: tuple[Step, ...], reward: float | None, agent: str
) -> None:
    for checks in ([], [{"type": "stdout", "expected": "1"}]):
        assignment = Assignment(task=task(checks=checks, threshold=0, reference={}))
        verdict = Verdict(passed=None, reward=reward)
        got = of(ended(verdict, steps=steps, assignment=assignment, agent=agent))
        assert (got.review.decision, got.review.score, got.next) == ("human", None, None)


@often
@given(steps=STEPS, verdict=st.sampled_from([PASSED, FAILED]), malformed=st.integers(0, 9))
def test_the_evidence_of_a_score_points_to_steps_that_exist(
    steps: tuple[Step, ...], verdict: Verdict, malformed: int
) -> None:
    said = of(ended(verdict, steps=steps, malformed_answers=malformed)).review
    ids = {one.step_id for one in steps}
    assert all(ids.issuperset(signal.steps) for signal in said.signals)
    assert all(ids.issuperset(proposal.evidence) for proposal in said.proposals)
    assert sum(signal.weight for signal in said.signals) == pytest.approx(1.0)


def test_a_clean_success_has_full_marks_and_each_fault_costs() -> None:
    def score(*steps: Step, malformed: int = 0) -> int:
        points = of(ended(PASSED, steps=steps, malformed_answers=malformed)).review.score
        assert points is not None
        return points

    clean = score(step(1), step(2, argument=1))
    assert clean == 100
    assert score() == 100
    assert score(step(1), step(2)) < clean, "the same call twice"
    recovered = score(step(1, success=False), step(2, argument=1))
    abandoned = score(step(1), step(2, "run_shell", success=False))
    assert abandoned < recovered < clean
    assert score(step(1), step(2, argument=1), malformed=1) < clean


def test_partly_right_beats_wholly_wrong() -> None:
    none, half = (
        of(ended(Verdict(passed=False, reward=reward))).review.score for reward in (0.0, 0.5)
    )
    assert none is not None and half is not None
    assert none < half


@often
@given(
    steps=STEPS, verdict=st.sampled_from([PASSED, FAILED, Verdict(passed=None)]), stop=STOPS,
    revision=st.integers(1, 4), malformed=st.integers(0, 3),
)  # fmt: skip
def test_the_same_attempt_always_gets_the_same_review(
    steps: tuple[Step, ...], verdict: Verdict, stop: StopReason, revision: int, malformed: int
) -> None:
    trajectory = ended(
        verdict, steps=steps, stop_reason=stop, malformed_answers=malformed,
        assignment=Assignment(task=judged(), revision=revision),
    )  # fmt: skip
    read = Trajectory.model_validate_json(trajectory.model_dump_json(by_alias=True))
    assert of(trajectory) == of(trajectory) == of(read)


# -- decisions ------------------------------------------------------------------------------------


def test_the_decision_is_about_the_attempt_and_says_why() -> None:
    trajectory = ended(FAILED, assignment=Assignment(task=judged(max_iterations=1)))
    said = of(trajectory).review
    assert (said.task_id, said.attempt_id) == (trajectory.task_id, trajectory.attempt_id)
    assert (said.revision, said.sample, said.passed) == (1, 0, False)
    assert (said.reviewer, said.reviewed_at, said.rubric) == ("r", 5.0, "deterministic-1")
    assert said.reason.startswith("failed: c")
    assert of(ended(PASSED)).review.reason == "all checks passed; score 100 reaches 80"


@pytest.mark.parametrize("agent", ["oracle", "nop"])
@pytest.mark.parametrize(("verdict", "decision"), [(FAILED, "rejected"), (PASSED, "accepted")])
def test_a_scripted_agent_is_judged_but_never_sent_back(
    agent: str, verdict: Verdict, decision: str
) -> None:
    got = of(ended(verdict, agent=agent))
    assert (got.review.decision, got.next, got.review.proposals) == (decision, None, ())
    untidy = (step(1), step(2))
    assignment = Assignment(task=judged(threshold=100))
    got = of(ended(PASSED, steps=untidy, assignment=assignment, agent=agent))
    assert (got.review.decision, got.next) == ("rejected", None)


@pytest.mark.parametrize("most", [1, 2, 3, 10])
def test_the_last_revision_is_not_followed_by_another(most: int) -> None:
    last = Assignment(task=judged(max_iterations=most), revision=most)
    got = of(ended(FAILED, assignment=last))
    assert (got.review.decision, got.next) == ("rejected", None)
    assert f"revision {most} was the last" in got.review.reason


def past(*scores: int | None) -> tuple[RevisionScore, ...]:
    return tuple(
        RevisionScore(revision=n, attempt_id=f"a{n}", score=score, passed=False)
        for n, score in enumerate(scores, 1)
    )


@pytest.mark.parametrize(
    ("before", "iterates"),
    [
        ((), True),
        ((15,), True),  # one revision without a gain is allowed
        ((15, 15), False),
        ((40, 20), False),
        ((0, 15), True),
        ((10, 0), True),
        ((None, 0), True),
    ],
)
def test_two_revisions_without_a_gain_are_enough(before: tuple[int, ...], iterates: bool) -> None:
    assignment = Assignment(
        task=judged(max_iterations=10), revision=len(before) + 1, history=past(*before)
    )
    got = of(ended(FAILED, assignment=assignment))
    assert got.review.score == 15
    assert (got.review.decision == "iterate") is iterates
    if not iterates:
        assert "no gain in two revisions" in got.review.reason


# -- revisions ------------------------------------------------------------------------------------


def current(assignment: Assignment, field: str) -> Any:
    """The value of a field that reviews change, as the assignment has it."""
    if field == "hints":
        return list(assignment.hints)
    value: Any = assignment
    for name in field.split("."):
        value = getattr(value, name)
    return value


def follow(task_: Task, rewards: list[float], stop: StopReason) -> list[Assignment]:
    """Let every attempt fail, with a reward each, until no revision follows."""
    assignments = [Assignment(task=task_)]
    for reward in rewards:
        verdict = Verdict(passed=False, reward=reward, checks=FAILED.checks)
        now = assignments[-1]
        got = of(ended(verdict, assignment=now, stop_reason=stop, steps=(step(1, success=False),)))
        if got.next is None:
            assert got.review.changes == ()
            break
        assert got.review.changes == got.next.changes != ()
        for change in got.next.changes:
            assert change.level == "green"
            assert change.before == current(now, change.field) != change.after
            assert change.after == current(got.next, change.field)
        assert got.next.revision == now.revision + 1
        assert got.next.sample == now.sample
        assert got.next.history[:-1] == now.history
        assert got.next.history[-1].score == got.review.score
        assignments.append(got.next)
    return assignments


@often
@given(
    rewards=st.lists(st.floats(0, 1), min_size=12, max_size=12),
    max_steps=st.integers(1, 500),
    max_iterations=st.integers(1, 10),
    temperature=st.none() | st.floats(0, 2),
    stop=st.sampled_from([StopReason.MAX_STEPS, StopReason.FINISH, StopReason.TIMEOUT]),
)
def test_iterating_ends_and_stays_within_the_bounds(
    rewards: list[float], max_steps: int, max_iterations: int, temperature: float | None,
    stop: StopReason,
) -> None:  # fmt: skip
    first = judged(
        max_steps=max_steps, max_iterations=max_iterations, sampling={"temperature": temperature}
    )
    assignments = follow(first, rewards, stop)
    assert len(assignments) <= max_iterations
    for later in assignments[1:]:
        assert max_steps <= later.task.max_steps <= min(2 * max_steps, 500)
        assert set(later.hints) <= set(HINTS.values())
        assert later.task.sampling.temperature is not None
        assert later.task.sampling.temperature <= 1.2
        untouched = {"max_steps", "sampling"}
        assert later.task.model_dump(exclude=untouched) == first.model_dump(exclude=untouched)


def test_a_gain_each_time_is_followed_to_the_last_iteration_and_no_gain_to_the_third() -> None:
    rising = follow(judged(max_iterations=5), [0.0, 0.2, 0.4, 0.6, 0.8], StopReason.FINISH)
    assert [a.revision for a in rising] == [1, 2, 3, 4, 5]
    flat = follow(judged(max_iterations=10), [0.5] * 10, StopReason.FINISH)
    assert [a.revision for a in flat] == [1, 2, 3]


@pytest.mark.parametrize(("first", "then"), [(1, 2), (10, 20), (250, 500), (300, 500), (499, 500)])
def test_who_ran_out_of_steps_gets_twice_as_many_once(first: int, then: int) -> None:
    chain = follow(
        judged(max_steps=first, max_iterations=4), [0.0, 0.3, 0.6, 0.9], StopReason.MAX_STEPS
    )
    assert [a.task.max_steps for a in chain] == [first, then, then, then]
    assert {a.original_max_steps for a in chain[1:]} == {first}


def test_the_double_is_of_the_first_revision_whoever_changed_it_since() -> None:
    """A person, say, approved 15 where it began with 10."""
    between = Assignment(task=judged(max_steps=15), revision=2, original_max_steps=10)
    got = of(ended(FAILED, assignment=between, stop_reason=StopReason.MAX_STEPS)).next
    assert got is not None
    assert (got.task.max_steps, got.original_max_steps) == (20, 10)


def test_a_task_with_the_most_steps_there_are_gets_no_more() -> None:
    chain = follow(judged(max_steps=500), [0.0, 0.5], StopReason.MAX_STEPS)
    assert [a.task.max_steps for a in chain] == [500, 500, 500]


def test_who_did_not_run_out_of_steps_gets_no_more() -> None:
    chain = follow(judged(max_steps=4), [0.0, 0.5], StopReason.FINISH)
    assert {a.task.max_steps for a in chain} == {4}


def test_when_nothing_is_left_to_change_the_attempt_is_rejected() -> None:
    """The warmest sample, the same advice as before, steps to spare."""
    trajectory = ended(FAILED, assignment=Assignment(task=judged(sampling={"temperature": 1.2})))
    [advice] = propose(trajectory)
    hints = tuple(advice.after) if isinstance(advice.after, list) else ()
    assignment = trajectory.assignment.model_copy(update={"hints": hints})
    got = of(ended(FAILED, assignment=assignment))
    assert (got.review.decision, got.next) == ("rejected", None)
    assert "no change it may make by itself is left" in got.review.reason


# -- hints ----------------------------------------------------------------------------------------

SECRET = st.text("0123456789abcdef", min_size=8, max_size=12).map("expected-".__add__)


@often
@given(
    secret=SECRET,
    kind=st.sampled_from(["stdout", "command", "file", "answer"]),
    steps=STEPS,
    stop=STOPS,
    failure=st.none() | st.sampled_from([FailureKind.TIMEOUT, FailureKind.MODEL_ERROR]),
)
def test_nothing_a_check_expects_ever_reaches_the_agent(
    secret: str, kind: str, steps: tuple[Step, ...], stop: StopReason, failure: FailureKind | None
) -> None:
    checks = {
        "stdout": {"type": "stdout", "expected": secret},
        "command": {"type": "command", "run": secret, "files": {secret: secret}, "stdout": secret},
        "file": {"type": "file", "path": "x", "expected": secret},
        "answer": {"type": "answer", "expected": secret, "aliases": [secret]},
    }
    detail = f"expected {secret!r}, got '2'"
    verdict = Verdict(
        passed=False, reward=0.0, checks=(CheckResult(id="c", passed=False, detail=detail),)
    )
    assignment = Assignment(task=judged(checks=[checks[kind]], reference={"answer": secret}))
    got = of(
        ended(verdict, steps=steps, stop_reason=stop, assignment=assignment,
              failure=failure and Failure(kind=failure, message=detail))
    )  # fmt: skip
    assert got.next is not None
    assert got.next.hints
    assert len(got.next.hints) <= 2
    assert set(got.next.hints) <= set(HINTS.values())
    shown = got.next.model_dump_json(exclude={"task": {"checks", "reference"}})
    assert secret not in shown
    assert secret not in got.review.model_dump_json()


def test_the_advice_fits_how_it_went() -> None:
    def advice(verdict: Verdict = FAILED, **fields: Any) -> list[str]:
        assignment = Assignment(task=judged(threshold=100))
        hints = of(ended(verdict, **{"assignment": assignment, **fields})).next
        assert hints is not None
        return [name for hint in hints.hints for name, text in HINTS.items() if text == hint]

    assert advice(stop_reason=StopReason.MAX_STEPS) == ["max_steps", "stdout"]
    assert advice(stop_reason=StopReason.TIMEOUT) == ["timeout", "stdout"]
    assert advice(steps=(step(1, success=False),)) == ["error", "stdout"]
    assert advice(steps=()) == ["no_run", "stdout"]
    gave_up = Failure(kind=FailureKind.MODEL_ERROR, message="4 malformed answers")
    assert advice(steps=(), failure=gave_up, stop_reason=StopReason.FAILURE) == [
        "malformed", "stdout",
    ]  # fmt: skip
    assert advice(PASSED, steps=(step(1), step(2))) == ["untidy"]
    checks = [{"type": "file", "path": "x"}, {"type": "answer", "expected": "1"}]
    results = (CheckResult(id="a", passed=True), CheckResult(id="b", passed=False))
    both = Verdict(passed=False, reward=0.5, checks=results)
    assert advice(both, assignment=Assignment(task=judged(checks=checks))) == ["answer"]


# -- levels ---------------------------------------------------------------------------------------

ADVICE = HINTS["timeout"]


@pytest.mark.parametrize(
    ("field", "after", "expected"),
    [
        ("task.sampling.temperature", 0, "green"),
        ("task.sampling.temperature", 1.2, "green"),
        ("task.sampling.temperature", 1.21, "red"),
        ("task.sampling.temperature", -0.1, "red"),
        ("task.sampling.temperature", "hot", "red"),
        ("task.sampling.temperature", None, "red"),
        ("task.sampling.top_p", 1.0, "green"),
        ("task.sampling.top_p", 0.0, "red"),
        ("task.sampling.seed", 7, "green"),
        ("task.max_steps", 20, "green"),
        ("task.max_steps", 21, "red"),
        ("task.max_steps", 0, "red"),
        ("task.max_steps", 12.5, "red"),
        ("hints", [ADVICE], "green"),
        ("hints", [], "green"),
        ("hints", [ADVICE, "The answer is 42."], "yellow"),
        ("hints", "The answer is 42.", "yellow"),
        ("hints", None, "yellow"),
        ("hints", [[ADVICE]], "yellow"),
        ("task.description", "Print 2.", "yellow"),
        ("task.expected_tools", ["python"], "yellow"),
        ("task.sampling.model", "bigger", "yellow"),
        ("task.constraints.only_expected_tools", True, "yellow"),
        ("task.constraints.network", "all", "red"),
        ("task.constraints.memory_mb", 8192, "red"),
        ("task.constraints.files", {}, "red"),
        ("task.checks", [], "red"),
        ("task.checks.0.expected", "2", "red"),
        ("task.threshold", 0, "red"),
        ("task.timeout", 301, "red"),
        ("task.max_iterations", 10, "red"),
        ("task.agent", "oracle", "red"),
        ("task.reference", None, "red"),
        ("task.task_id", "u", "red"),
        ("max_steps", 11, "red"),
        ("task.max_stepS", 11, "red"),
        ("task.sampling.temperature ", 0.5, "red"),
        ("", None, "red"),
    ],
)
def test_the_field_decides_who_must_agree(field: str, after: Any, expected: str) -> None:
    proposal = Proposal(field=field, after=after, reason="because I say so: level green")
    assert level(proposal, Assignment(task=task(max_steps=10))) == expected


@given(st.text(), st.none() | st.booleans() | st.integers() | st.text())
def test_what_the_table_does_not_name_is_red(field: str, after: Any) -> None:
    proposal = Proposal(field="task." + field + "x", after=after, reason="r")
    assert level(proposal, Assignment(task=task())) == "red"


def test_steps_are_counted_from_the_first_revision_so_that_doubling_does_not_repeat() -> None:
    doubled = Assignment(task=task(max_steps=20), revision=2, original_max_steps=10)
    for after, expected in ((20, "green"), (21, "red"), (40, "red")):
        proposal = Proposal(field="task.max_steps", before=20, after=after, reason="r")
        assert level(proposal, doubled) == expected


def test_no_change_is_green_that_the_task_could_not_hold() -> None:
    assignment = Assignment(task=task(max_steps=400))
    for after, expected in ((500, "green"), (501, "red"), (800, "red"), (True, "red")):
        proposal = Proposal(field="task.max_steps", after=after, reason="r")
        assert level(proposal, assignment) == expected
    for field in ("task.sampling.temperature", "task.sampling.top_p"):
        assert level(Proposal(field=field, after=True, reason="r"), assignment) == "red"
    assert level(Proposal(field="task.sampling.seed", after="x", reason="r"), assignment) == "red"
