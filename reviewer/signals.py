"""Signals: what the steps of an attempt show without anybody's opinion, with the steps as evidence.

Points are 1 for the best and 0 for the worst. What an attempt gives no occasion to measure is
absent: an attempt in which nothing failed shows nothing about recovering.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from pydantic import JsonValue

from common.groups import Try
from common.review import Signal
from common.trajectory import Trajectory
from reviewer.grounding import grounded

ALWAYS = frozenset({"wasted_steps", "malformed", "repetition"})
"""Signals that every attempt has: they count faults, and to have none is a fact too."""
_FAULTS_HALVE = 4
"""Faults that halve the points, however many steps there are."""
_RECOVERED_AT_ONCE = 2
"""Failures in a row of one tool that its next success may make up for."""


def measure(trajectory: Trajectory, siblings: Sequence[Try] = ()) -> dict[str, Signal]:
    """Return each signal that this attempt has, by name. ``siblings``: other tries at its task."""
    found = (measured(trajectory, siblings) for measured in _MEASURES.values())
    return {signal.name: signal for signal in found if signal is not None}


def _wasted_steps(trajectory: Trajectory, _: Sequence[Try]) -> Signal:
    """Steps that failed."""
    failed = [step.step_id for step in trajectory.steps if not step.success]
    return _faults("wasted_steps", len(failed), len(trajectory.steps), failed)


def _malformed(trajectory: Trajectory, _: Sequence[Try]) -> Signal:
    """Answers that could not be read as a tool call."""
    bad = trajectory.malformed_answers
    return _faults("malformed", bad, len(trajectory.steps) + bad)


def _repetition(trajectory: Trajectory, _: Sequence[Try]) -> Signal:
    """Calls made again although nothing new had happened since the same call before.

    New is what succeeds with a result that this call has not had yet: a test run again after an
    edit, or one more page of a list, repeats nothing; two calls in turn, over and over, do.
    """
    made: dict[tuple[str, object], int] = {}
    results: set[object] = set()
    repeated, news = [], -1
    for index, step in enumerate(trajectory.steps):
        call = (step.action.tool, _frozen(step.action.arguments))
        seen = step.observation
        result = (call, seen.text, seen.blobs, seen.truncated_from)
        before = made.get(call)
        if step.success and result not in results:
            news = index
        elif before is not None and news <= before:
            repeated.append(step.step_id)
        results.add(result)
        made[call] = index
    return _faults("repetition", len(repeated), len(trajectory.steps), repeated)


def _recovery(trajectory: Trajectory, _: Sequence[Try]) -> Signal | None:
    """Failed steps that a success of the same tool made up for.

    A success makes up for the last failures of its tool in a row: one that took more tries was
    found by trial, and no success after that makes up for it later.
    """
    failed, recovered = [], 0
    in_a_row: Counter[str] = Counter()
    for step in trajectory.steps:
        tool = step.action.tool
        if step.success:
            recovered += min(in_a_row.pop(tool, 0), _RECOVERED_AT_ONCE)
        else:
            failed.append(step.step_id)
            in_a_row[tool] += 1
    if not failed:
        return None
    return _signal("recovery", recovered, recovered / len(failed), failed)


def _grounding(trajectory: Trajectory, _: Sequence[Try]) -> Signal | None:
    """Values in arguments that come from something the agent was given, saw or wrote."""
    found = grounded(trajectory)
    return _signal("grounding", round(found[0], 4), found[0], found[1]) if found else None


def _efficiency(trajectory: Trajectory, siblings: Sequence[Try]) -> Signal | None:
    """Steps, against the fewest of the attempts at this task that passed."""
    others = [sibling.steps for sibling in siblings if sibling.passed]
    if not (trajectory.verdict.passed and others):
        return None
    own = len(trajectory.steps)
    fewest = min(*others, own)
    return _signal("efficiency", fewest, max(fewest, 1) / max(own, 1))


_MEASURES: dict[str, Callable[[Trajectory, Sequence[Try]], Signal | None]] = {
    "wasted_steps": _wasted_steps,
    "malformed": _malformed,
    "repetition": _repetition,
    "recovery": _recovery,
    "grounding": _grounding,
    "efficiency": _efficiency,
}
SIGNALS = tuple(_MEASURES)
"""All there are, by the names that rubrics use."""
_canonical = json.JSONEncoder(sort_keys=True).encode


def _faults(name: str, faults: int, of: int, steps: Iterable[int] = ()) -> Signal:
    """Count by share or by number, whichever is worse: no number of idle steps hides faults."""
    share = 1 - faults / of if of else 1.0
    return _signal(name, faults, min(share, _FAULTS_HALVE / (_FAULTS_HALVE + faults)), steps)


def _signal(name: str, value: float, points: float, steps: Iterable[int] = ()) -> Signal:
    return Signal(name=name, value=value, points=round(points, 4), steps=tuple(steps))


def _frozen(arguments: dict[str, JsonValue]) -> frozenset[object]:
    """Return something hashable, equal for equal arguments whatever the order of their keys."""
    return frozenset([(name, type(value), _flat(value)) for name, value in arguments.items()])


def _flat(value: JsonValue) -> object:
    return _canonical(value) if isinstance(value, dict | list) else value
