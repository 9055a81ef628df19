"""Proves tasks before they cost anything: the oracle must pass, doing nothing must fail."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import __version__
from common.metrics import Metrics
from common.settings import Settings
from common.store import Store
from common.task import Assignment, Task
from common.trajectory import Provenance, Trajectory
from workers.environment import Scene
from workers.episode import Episode, EpisodeLimits
from workers.policies.scripted import ScriptedPolicy
from workers.scenes import SCENES, build

Status = Literal["proven", "broken", "unproven"]


@dataclass(frozen=True)
class Proof:
    """What running a task's oracle and nop showed."""

    task: Task
    status: Status
    why: str
    seconds: float = 0.0


async def prove(
    tasks: list[Task],
    settings: Settings,
    *,
    concurrency: int,
    told: Callable[[Proof], None] = lambda _: None,
) -> list[Proof]:
    """Run both agents on every task in the real sandbox. Raises `ConfigurationError`."""
    metrics = Metrics()
    scenes: dict[str, Scene] = {}
    slots = asyncio.Semaphore(concurrency)
    try:
        for name in {task.scene for task in tasks} & SCENES.keys():
            scenes[name] = build(name, settings, metrics)
            await scenes[name].open()
        with tempfile.TemporaryDirectory(prefix="fleet-validate-") as folder:
            store = Store(Path(folder))

            async def one(task: Task) -> Proof:
                async with slots:
                    proof = await _prove(task, scenes.get(task.scene), store, settings)
                told(proof)
                return proof

            return list(await asyncio.gather(*(one(task) for task in tasks)))
    finally:
        for scene in scenes.values():
            await scene.close()


async def _prove(task: Task, scene: Scene | None, store: Store, settings: Settings) -> Proof:
    if scene is None:
        known = ", ".join(SCENES)
        return Proof(task, "broken", f"no scene {task.scene!r} in this release; there is: {known}")
    problems = scene.objections(task)
    if problems:
        return Proof(task, "broken", "; ".join(f"{f}: {r}" for f, r in problems))
    if not task.checks:
        return Proof(task, "unproven", "no checks: whatever an agent does stays unverified")
    if task.reference is None:
        return Proof(task, "unproven", "no reference: nothing shows that its checks can be passed")
    oracle = await _play(task, "oracle", scene, store, settings)
    nop = await _play(task, "nop", scene, store, settings)
    seconds = oracle.total_duration + nop.total_duration
    if oracle.failure is not None and oracle.verdict.passed is None:
        return Proof(task, "broken", f"the oracle could not run: {oracle.failure.message}", seconds)
    if not oracle.verdict.passed:
        failed = "; ".join(f"{c.id}: {c.detail}" for c in oracle.verdict.checks if not c.passed)
        return Proof(task, "broken", f"its reference fails: {failed}", seconds)
    if nop.verdict.passed is not False:
        why = (
            nop.failure.message if nop.failure is not None else "an agent that does nothing passes"
        )
        return Proof(task, "broken", why, seconds)
    return Proof(task, "proven", "oracle passes, nop fails", seconds)


async def _play(
    task: Task, kind: Literal["oracle", "nop"], scene: Scene, store: Store, settings: Settings
) -> Trajectory:
    provenance = Provenance(fleet_version=__version__, worker="validate", host=settings.host)
    episode = Episode(
        Assignment(task=task),
        f"validate-{kind}",
        scene,
        ScriptedPolicy(kind, task.reference),
        store,
        provenance,
        EpisodeLimits(step=settings.step_timeout),
    )
    return await episode.run()
