"""Attempts that ended in every way, and what the reviewer says of them."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from common.task import Assignment, Task
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
from reviewer.policy import Policy
from reviewer.review import Reviewed, Rules, Seen, review
from reviewer.rubric import rubric_for
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


RULES = Rules(rubric_for("code"), Policy.load(), ask_people="never")
"""What the reviewer may do alone."""


def of(trajectory: Trajectory, rules: Rules = RULES, **seen: Any) -> Reviewed:
    """What the reviewer says at once; ``seen``: fields of `Seen`."""
    return review(trajectory, rules, Seen(**seen), reviewer="r", now=5.0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["run_python", "run_shell", "finish"]), st.integers(0, 2), st.booleans()
    ),
    max_size=8,
).map(lambda all_: tuple(step(i, t, a, success=s) for i, (t, a, s) in enumerate(all_, 1)))
REWARDS = st.none() | st.floats(0, 1)
STOPS = st.sampled_from(list(StopReason))
