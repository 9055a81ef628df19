"""What the reviewer decides: the verifier comes first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.task import Assignment, RevisionScore
from common.trajectory import Step, StopReason, Trajectory, Verdict
from tests.helpers import task
from tests.reviewer.endings import (
    FAILED,
    PASSED,
    REWARDS,
    STEPS,
    STOPS,
    ended,
    judged,
    of,
    often,
    step,
)

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
    assert (said.reviewer, said.reviewed_at, said.rubric) == ("r", 5.0, "code-2")
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


def past(*merits: tuple[float, float] | None) -> tuple[RevisionScore, ...]:
    """Failed revisions by what the checks gave and the rubric came to; None: an older release's."""
    return tuple(
        RevisionScore(
            revision=n, attempt_id=f"a{n}", score=None, passed=False,
            reward=merit and merit[0], rubric=merit and merit[1],
        )
        for n, merit in enumerate(merits, 1)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "iterates"),
    [
        ((), True),
        (((0.0, 1.0),), True),  # one revision without a gain is allowed
        (((0.0, 1.0), (0.0, 1.0)), False),
        (((0.8, 0.0), (0.4, 1.0)), False),  # the checks come before the rubric
        (((0.0, 0.2), (0.0, 0.9)), True),  # equal for the checks, the rubric decides
        (((0.2, 0.0), (0.0, 0.0)), False),
        ((None, (0.0, 0.0)), True),
    ],
)
def test_two_revisions_without_a_gain_are_enough(
    before: tuple[tuple[float, float] | None, ...], iterates: bool
) -> None:
    assignment = Assignment(
        task=judged(max_iterations=10), revision=len(before) + 1, history=past(*before)
    )
    got = of(ended(FAILED, assignment=assignment))
    assert (got.review.decision == "iterate") is iterates
    if not iterates:
        assert "no gain in two revisions" in got.review.reason
