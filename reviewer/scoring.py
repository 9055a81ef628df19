"""Scores: the verifier decides which half of the scale, the rubric where in it.

Failed: at most 49. Passed: 50 and half the rubric. Nothing verified: no score; where judges accept
it, 50 and half of what the signals say in the rubric (reviewer/review.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.groups import Try
from common.review import Dimension, JudgeReport, Signal
from common.trajectory import Trajectory, Verdict
from reviewer.judge.tally import is_firm
from reviewer.rubric import DimensionSpec, Rubric
from reviewer.signals import measure

_LEVEL = 4.0
"""From the worst of five levels to the best."""
_PARTLY_RIGHT = 0.7
"""Of a failed attempt's score: partly right beats wholly wrong, and no manners make up for it."""


@dataclass(frozen=True)
class Assessment:
    """What one attempt comes to by one rubric."""

    signals: tuple[Signal, ...]
    """All that were measured; a weight of 0: this rubric does not use it."""
    dimensions: tuple[Dimension, ...]
    rubric: float | None
    """0-1; null: nothing in the rubric could be said."""
    score: int | None
    """0-100; null where nothing was verified, or nothing in the rubric could be said."""


@dataclass(frozen=True)
class _Part:
    """One dimension, measured."""

    spec: DimensionSpec
    shares: dict[str, float]
    """Of each signal that is there, in what the signals of this dimension say; they sum to 1."""
    signals: float | None
    grade: float | None
    by_judge: float
    """Share of the grade in the points."""
    points: float | None


def assess(
    trajectory: Trajectory,
    rubric: Rubric,
    *,
    siblings: Sequence[Try] = (),
    report: JudgeReport | None = None,
) -> Assessment:
    """Measure one attempt by ``rubric``; ``report`` is what judges said, if they were asked.

    A judge ranks what the checks let through: what it says of a failed attempt counts for nothing.
    """
    found = measure(trajectory, siblings)
    if trajectory.verdict.passed is False:
        report = None
    parts = [_part(spec, found, report) for spec in rubric.dimensions]
    whole = sum(part.spec.weight for part in parts if part.points is not None)
    weights = dict.fromkeys(found, 0.0)
    total = 0.0
    for part in parts:
        if part.points is None or not whole:
            continue
        share = part.spec.weight / whole
        total += share * part.points
        for name, of_signals in part.shares.items():
            weights[name] += share * (1 - part.by_judge) * of_signals
    points = min(total, 1.0) if whole else None
    return Assessment(
        signals=tuple([_weighed(signal, weights[name]) for name, signal in found.items()]),
        dimensions=tuple(_dimension(part) for part in parts),
        rubric=points,
        score=_score(trajectory.verdict, points),
    )


def _part(spec: DimensionSpec, found: Mapping[str, Signal], report: JudgeReport | None) -> _Part:
    there = {name: share for name, share in spec.signals.items() if name in found}
    whole = sum(there.values())
    shares = {name: share / whole for name, share in there.items()}
    signals = sum(share * found[n].points for n, share in shares.items()) if shares else None
    grade = _grade(spec.id, report) if spec.judge and report is not None else None
    by_judge = 0.0 if grade is None else spec.judge if shares else 1.0
    points = signals
    if grade is not None:
        points = by_judge * (grade - 1) / _LEVEL + (1 - by_judge) * (signals or 0.0)
    return _Part(spec, shares, signals, grade, by_judge, points)


def _grade(criterion: str, report: JudgeReport) -> float | None:
    """Return the grade, 1-5, of the one judge that `Panel.grade` asks; None where it has none."""
    said = next(iter(report.of(criterion)), None)
    return said.median if said is not None and is_firm(said) else None


def _weighed(signal: Signal, weight: float) -> Signal:
    return Signal(
        name=signal.name,
        value=signal.value,
        weight=weight,
        points=signal.points,
        steps=signal.steps,
    )


def _dimension(part: _Part) -> Dimension:
    points, signals = part.points, part.signals
    return Dimension(
        id=part.spec.id,
        weight=part.spec.weight,
        points=None if points is None else round(min(points, 1.0), 4),
        signals=None if signals is None else round(min(signals, 1.0), 4),
        judge=part.grade,
    )


def good(rubric: float | None) -> int | None:
    """Return the score of what was found to be done: 50 and half the rubric."""
    return None if rubric is None else 50 + round(50 * rubric)


def _score(verdict: Verdict, rubric: float | None) -> int | None:
    if verdict.passed is None:
        return None
    if verdict.passed:
        return good(rubric)
    partly = _PARTLY_RIGHT * (verdict.reward or 0.0) + (1 - _PARTLY_RIGHT) * (rubric or 0.0)
    return min(49, round(49 * partly))
