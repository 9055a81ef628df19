"""What a lease ends with, decided from how its attempt went, and what is counted of it."""

from __future__ import annotations

import random

import orjson

from common.failures import Failure, FailureClass, FailureKind
from common.metrics import Metrics
from common.queue.committer import Dead, Done, Outcome, Retry
from common.trajectory import Trajectory

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


def count_steps(metrics: Metrics, trajectory: Trajectory, name: str) -> None:
    """Count the tool calls of a committed attempt, and the dead letter it may have become."""
    scene = trajectory.assignment.task.scene
    tools = {schema["function"]["name"] for schema in trajectory.tools}
    for step in trajectory.steps:
        action = step.action.tool if step.action.tool in tools else "other"
        outcome = "ok" if step.success else "error"
        metrics.steps.labels(scene, action, outcome).inc()
        metrics.step_seconds.labels(scene).observe(step.duration)
    if name == "dead" and trajectory.failure is not None:
        metrics.dead_letters.labels(scene, trajectory.failure.kind.value).inc()
