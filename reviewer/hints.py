"""Advice a revision may be given without asking anybody: reviewed sentences, nothing else.

None of them holds anything of a check's expected value, so a hint can never leak the solution.
"""

from __future__ import annotations

from collections.abc import Iterable

from common.failures import FailureKind
from common.trajectory import StopReason, Trajectory

HINTS: dict[str, str] = {
    "max_steps": "You ran out of steps. Plan first, then do the work in as few steps as you can, "
    "and end as soon as the task is done.",
    "timeout": "You ran out of time. Take the simplest approach that solves the task.",
    "malformed": "Some of your answers could not be read. Keep strictly to the form of answer "
    "that was asked for.",
    "no_run": "You ended without running any program. Write a program, run it, and look at its "
    "output before you end.",
    "error": "Your last program ended with an error. Read the error message, correct the program "
    "and run it again before you end.",
    "stdout": "The printed output was not what the task asks for. Print exactly what is asked, in "
    "the asked form, with no extra words, and check every value.",
    "command": "Tests of your work failed. Read the description again, handle every case it "
    "names, and try your code on small examples before you end.",
    "file": "A file the task asks for is missing or has the wrong content. Check its name and "
    "what is in it before you end.",
    "answer": "Your answer was not right. Compute it with a program instead of guessing, and give "
    "only the answer itself.",
    "untidy": "The result was right, but reached with needless steps. Avoid repeating calls and "
    "errors.",
}


def hints_for(trajectory: Trajectory) -> tuple[str, ...]:
    """Return the advice that fits how this attempt went, the most telling first; at most two."""
    keys: list[str] = []
    if trajectory.stop_reason is StopReason.MAX_STEPS:
        keys.append("max_steps")
    if trajectory.stop_reason is StopReason.TIMEOUT:
        keys.append("timeout")
    failure = trajectory.failure
    if failure is not None and failure.kind is FailureKind.MODEL_ERROR:
        keys.append("malformed")
    runs = [s for s in trajectory.steps if s.exit_code is not None or s.failure is not None]
    if not runs and not keys:
        keys.append("no_run")
    elif runs and not runs[-1].success:
        keys.append("error")
    if trajectory.verdict.passed:
        keys.append("untidy")
    checks = trajectory.assignment.task.checks
    for check, result in zip(checks, trajectory.verdict.checks, strict=False):
        if not result.passed:
            keys.append(check.type)
    return tuple(HINTS[key] for key in dict.fromkeys(keys))[:2]


def written(hints: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``hints`` that people wrote or chose: advice never takes their place."""
    ours = set(HINTS.values())
    return tuple(hint for hint in hints if hint not in ours)
