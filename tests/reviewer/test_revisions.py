"""What another revision is given: steps, warmth and advice, in bounds and never the answer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.failures import Failure, FailureKind
from common.task import Assignment, Task
from common.trajectory import CheckResult, Step, StopReason, Verdict
from reviewer.hints import HINTS
from reviewer.propose import propose
from tests.reviewer.endings import FAILED, PASSED, STEPS, STOPS, ended, judged, of, often, step

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


def test_what_a_person_wrote_is_still_told_after_a_green_revision() -> None:
    own = "Use the calendar of 1582."
    written = Assignment(task=judged(), revision=2, hints=(own,))
    got = of(ended(FAILED, assignment=written)).next
    assert got is not None
    assert got.hints[0] == own
    assert set(got.hints[1:]) and set(got.hints[1:]) <= set(HINTS.values())


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
