"""The deterministic rubric: what the steps of an attempt show, as points with their evidence."""

from __future__ import annotations

import orjson

from common.review import Signal
from common.trajectory import Trajectory

RUBRIC = "deterministic-1"
"""Name and version, written into every review; changes when a weight or a signal does."""

_WEIGHTS = {"wasted_steps": 0.35, "recovery": 0.25, "malformed": 0.2, "repetition": 0.2}


def signals(trajectory: Trajectory) -> tuple[Signal, ...]:
    """Measure what needs no opinion. Points are 1 for the best, 0 for the worst."""
    steps = trajectory.steps
    failed = [s.step_id for s in steps if not s.success]
    answers = len(steps) + trajectory.malformed_answers
    recovered = [
        s.step_id
        for i, s in enumerate(steps)
        if not s.success
        and any(later.success and later.action.tool == s.action.tool for later in steps[i + 1 :])
    ]
    seen: set[bytes] = set()
    repeated = []
    for step in steps:
        key = orjson.dumps([step.action.tool, step.action.arguments], option=orjson.OPT_SORT_KEYS)
        if key in seen:
            repeated.append(step.step_id)
        seen.add(key)
    return (
        _signal("wasted_steps", len(failed), 1 - _share(len(failed), len(steps)), failed),
        _signal("recovery", len(recovered), _share(len(recovered), len(failed), none=1.0), failed),
        _signal(
            "malformed",
            trajectory.malformed_answers,
            1 - _share(trajectory.malformed_answers, answers),
            [],
        ),
        _signal("repetition", len(repeated), 1 - _share(len(repeated), len(steps)), repeated),
    )


def score(passed: bool | None, reward: float | None, found: tuple[Signal, ...]) -> int | None:
    """Return 0-100, verifier first: failed at most 49, passed 50 + half the weighted rubric.

    None where nothing was verified: no number can stand in for a missing verdict.
    """
    if passed is None:
        return None
    total = sum(s.weight for s in found)
    rubric = sum(s.weight * s.points for s in found) / total if total else 0.0
    if passed:
        return 50 + round(50 * rubric)
    # Partly right beats wholly wrong, but no manners make up for a failed check.
    return min(49, round(49 * (0.7 * (reward or 0.0) + 0.3 * rubric)))


def _signal(name: str, value: float, points: float, steps: list[int]) -> Signal:
    return Signal(
        name=name, value=value, weight=_WEIGHTS[name], points=round(points, 4), steps=tuple(steps)
    )


def _share(part: int, whole: int, *, none: float = 0.0) -> float:
    return part / whole if whole else none
