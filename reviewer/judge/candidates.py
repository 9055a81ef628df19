"""Which stored attempts a judge is measured on: those of models that a verifier has judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from common.store import Store
from common.task import digest
from common.trajectory import Trajectory
from reviewer.judge.asking import Judge


@dataclass(frozen=True)
class Candidate:
    """A stored attempt with a verdict, to ask a judge about."""

    scene: str
    task_id: str
    attempt_id: str
    passed: bool
    model: str | None


def candidates(
    store: Store,
    *,
    embedded: bool,
    scene: str | None = None,
    told: Callable[[int], None] = lambda _: None,
    left_out: Counter[str] | None = None,
) -> list[Candidate]:
    """Return all reviewed attempts of models that have a verdict. ``told``: how many were read.

    Not those of stand-ins, and those of the embedded model only with ``embedded``. ``left_out``
    is told how many others there are, by the reason.
    """
    found = []
    for read, one in enumerate(store.reviewed(), 1):
        told(read)
        trajectory = one.trajectory
        of_scene = trajectory.assignment.task.scene
        if scene not in (None, of_scene):
            continue
        passed, reason = trajectory.verdict.passed, _unfit(trajectory, embedded)
        if passed is None or reason is not None:
            if left_out is not None:
                left_out[reason or "without a verdict"] += 1
            continue
        task_id, attempt_id = trajectory.task_id, trajectory.attempt_id
        found.append(Candidate(of_scene, task_id, attempt_id, passed, trajectory.agent.model))
    return found


def _unfit(trajectory: Trajectory, embedded: bool) -> str | None:
    """Say why an attempt shows nothing about judging a model's work; None if it may."""
    agent = trajectory.agent
    if agent.kind != "llm":
        return "by scripted agents"  # what they do, no model would
    if agent.model_source == "standin" or trajectory.environment.is_standin:
        return "by stand-ins"
    if agent.model_source == "embedded" and not embedded:
        return "by the embedded model (--include-embedded takes them)"
    return None


def sample(found: Iterable[Candidate], *, limit: int, judge: Judge) -> list[Candidate]:
    """Return at most ``limit`` attempts, half of them passed where there are enough of both.

    The same store gives the same ones. Those in which the judge acted itself come last.
    """

    def order(one: Candidate) -> tuple[bool, str]:
        return judge.is_same_as(one.model), digest([one.task_id, one.attempt_id])

    ordered = sorted(found, key=order)
    passed = [one for one in ordered if one.passed]
    failed = [one for one in ordered if not one.passed]
    return sorted([*passed[: limit // 2], *failed[: limit - limit // 2]], key=order)
