"""What a lease ends with, decided from how its attempt went, and what is counted of it."""

from __future__ import annotations

import asyncio
import random

import orjson

from common.failures import Failure, FailureClass, FailureKind
from common.logs import logger
from common.metrics import Metrics
from common.queue.committer import Dead, Done, Outcome, Retry
from common.queue.scene_queue import Lease
from common.store import Store
from common.trajectory import Trajectory

log = logger("worker")

_LONGEST = 3600.0
"""Seconds a provider's Retry-After may park a task; some say a year."""


def outcome_of(trajectory: Trajectory, digest: str, *, base: float) -> tuple[Outcome, str]:
    """Return what to commit, and its name in the metrics.

    ``digest``: sha256 of the attempt's file. ``base``: seconds before a first retry.
    """
    failure = trajectory.failure
    if failure is not None and failure.failure_class is FailureClass.INFRASTRUCTURE:
        return retry_of(failure, base=base), "retried"
    if failure is not None and failure.failure_class is FailureClass.TASK:
        return Dead(failure.kind.value, failure.message[:2000]), "dead"
    passed = trajectory.verdict.passed
    event = {
        "attempt_id": trajectory.attempt_id,
        "revision": trajectory.revision,
        "sample": trajectory.sample,
        "sha256": digest,
        "passed": passed,
    }
    name = "unverified" if passed is None else "passed" if passed else "failed"
    return Done(orjson.dumps(event)), name


def retry_of(failure: Failure, *, base: float) -> Retry:
    """A spread first delay (it doubles with each retry), never less than we were asked to."""
    delay = random.uniform(0.5, 1.0) * base
    asked = min(failure.retry_after or 0.0, _LONGEST)
    delay = max(delay, asked * random.uniform(1.0, 1.25))
    error = f"{failure.kind.value}: {failure.message[:1500]}"
    return Retry(delay, error, counted=failure.kind is not FailureKind.RATE_LIMITED)


def names_of(lease: Lease) -> dict[str, str]:
    """Return what every log line about an attempt carries."""
    return {"task_id": lease.task_id, "attempt_id": lease.attempt_id, "scene": lease.scene}


def finished(metrics: Metrics, lease: Lease, trajectory: Trajectory, name: str) -> None:
    """Count and log a committed attempt; ``name``: of its outcome, as `outcome_of` says."""
    scene, failure = lease.scene, trajectory.failure
    tools = {schema["function"]["name"] for schema in trajectory.tools}
    for step in trajectory.steps:
        action = step.action.tool if step.action.tool in tools else "other"
        outcome = "ok" if step.success else "error"
        metrics.steps.labels(scene, action, outcome).inc()
        metrics.step_seconds.labels(scene).observe(step.duration)
    metrics.replayed.labels(scene).inc(trajectory.replayed_usage.calls)
    if name == "dead" and failure is not None:
        metrics.dead_letters.labels(scene, failure.kind.value).inc()
    log.info(
        "attempt.finished", **names_of(lease), trace_id=trajectory.trace_id, outcome=name,
        stop_reason=trajectory.stop_reason.value, steps=len(trajectory.steps),
        replayed=trajectory.replayed_steps or None,
        seconds=trajectory.total_duration, error_type=failure.kind.value if failure else None,
        error=failure.message[:300] if failure and name in ("retried", "dead") else None,
    )  # fmt: skip


def refused(metrics: Metrics, lease: Lease, dead: Dead) -> None:
    """Count and log a dead letter of which nothing was begun."""
    metrics.dead_letters.labels(lease.scene, dead.reason).inc()
    log.info(
        "attempt.finished", **names_of(lease), outcome="dead", error_type=dead.reason,
        error=dead.error[:300],
    )  # fmt: skip


async def sweep(store: Store, metrics: Metrics, lease: Lease) -> None:
    """Remove what lost leases left, now that ``lease`` has ended their entry."""
    swept = await asyncio.to_thread(store.sweep, lease.task_id, lease.attempt_id, scene=lease.scene)
    if swept:
        metrics.swept.labels(lease.scene).inc(len(swept))
        log.info("store.swept", task_id=lease.task_id, attempts=swept)
