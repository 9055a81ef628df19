"""Which model an episode gets: the first provider that is well, and then that one to the end."""

from __future__ import annotations

import time

from common.failures import FailureKind, FleetError
from common.llm.telemetry import CallCounter
from common.llm.types import CallRecord, ChatModel
from common.metrics import Metrics
from common.task import Assignment
from workers.policies.base import Policy
from workers.policies.model import ModelPolicy
from workers.policies.scripted import ScriptedPolicy

_REST = 30.0
"""Seconds a provider is passed over after a call to it failed for good."""


class Policies:
    """Makes the policy a task asks for. Fails over between episodes, never inside one."""

    def __init__(self, models: list[ChatModel], *, deadline: float, metrics: Metrics) -> None:
        self._models = models
        self._deadline = deadline
        self._count = CallCounter(metrics)
        self._unwell: dict[str, float] = {}

    def use(self, models: list[ChatModel]) -> None:
        self._models = models

    def __call__(self, assignment: Assignment, *, attempt_id: str) -> Policy:
        task = assignment.task
        if task.agent != "llm":
            return ScriptedPolicy(task.agent, task.reference)
        if not self._models:
            raise FleetError(
                "the task needs a model, and this fleet was started without one: set a provider's "
                "key (see .env.example) and leave --agent and --no-model out",
                kind=FailureKind.INVALID_TASK,
            )
        now = time.monotonic()
        well = (m for m in self._models if now >= self._unwell.get(m.provider, 0.0))
        model = next(well, self._models[0])
        if (exceeded := model.objection(task.scene, task.sampling)) is not None:
            raise exceeded  # before a sandbox is started for nothing
        headers = {"x-fleet-task": task.task_id, "x-fleet-attempt": attempt_id}
        # Header values are ASCII; an id in other letters is told by its hash-free escape.
        headers = {k: v.encode("ascii", "backslashreplace").decode() for k, v in headers.items()}
        return ModelPolicy(
            model, task.sampling, deadline=self._deadline, headers=headers, account=task.scene
        )

    def observe(self, call: CallRecord) -> None:
        """Count one model call; remember a provider that gave way."""
        if call.error_type in ("unavailable", "rate_limited"):
            self._unwell[call.provider] = time.monotonic() + _REST
        elif call.error_type is None:
            self._unwell.pop(call.provider, None)
        self._count(call)
