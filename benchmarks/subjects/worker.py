"""A real worker process whose world does nothing: Worker, Episode, ModelPolicy, store and queue.

Started as `python -m benchmarks.subjects.worker`, settings from `FLEET_*`. On SIGTERM it drains
and prints what it used. BENCH_PROFILE=FILE: under cProfile, which doubles its CPU.
"""

from __future__ import annotations

import cProfile
import json
import os
import sys
import time
from typing import Self

from benchmarks.meter import own_cpu, own_peak
from benchmarks.standin import TOOL
from common.llm.client import connect
from common.quota.gate import Gate
from common.service import Service, run
from common.store import open_store
from common.task import Task
from common.trajectory import Action, EnvironmentInfo, Step, Verdict
from workers.models import Policies
from workers.tools import Tool, Toolbox, ToolOutput, parameters
from workers.worker import Worker

SCENE = "code"

_NOOP = Tool(TOOL, "Does nothing.", parameters(note={"type": "string"}))


class NoWorld:
    """An environment in which every call succeeds at once."""

    info = EnvironmentInfo(backend="standin-noop")

    def __init__(self) -> None:
        self.tools = Toolbox.of((_NOOP,), first=(), only=False)

    async def reset(self) -> str:
        return ""

    async def call(self, action: Action, *, timeout: float) -> ToolOutput:
        return ToolOutput("ok")

    async def verify(self, answer: str, steps: list[Step]) -> Verdict:
        return Verdict(passed=False, reward=0.0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


class NoScene:
    """Worlds that cost nothing, so that what is left is the fleet's own work."""

    name = SCENE

    def objections(self, task: Task) -> list[tuple[str, str]]:
        return []

    def environment(self, task: Task, *, labels: dict[str, str]) -> NoWorld:
        return NoWorld()

    async def open(self) -> dict[str, str]:
        return {}

    async def reap(self) -> int:
        return 0

    async def close(self) -> None:
        return None


async def work(service: Service) -> None:
    settings, metrics = service.settings, service.metrics
    policies = Policies([], deadline=settings.llm_deadline, metrics=metrics)
    gate = Gate(service.server, service.consumer, metrics=metrics)
    models = connect(settings, observe=policies.observe, gate=gate)
    policies.use(models)
    worker = Worker(
        settings, service.server, open_store(settings.output), [NoScene()], policies, metrics,
        service.health, consumer=service.consumer,
    )  # fmt: skip
    cpu, clock = own_cpu(), time.monotonic()
    print("ready", flush=True)
    await worker.run(service.draining)
    used = {"cpu": own_cpu() - cpu, "seconds": time.monotonic() - clock, "peak_mb": own_peak()}
    print(json.dumps(used), flush=True)
    for model in models:
        await model.close()
    await gate.close()


def main() -> int:
    where = os.environ.get("BENCH_PROFILE")
    if where is None:
        return run("worker", work)
    profile = cProfile.Profile()
    try:
        return profile.runcall(run, "worker", work)
    finally:
        profile.dump_stats(where)


if __name__ == "__main__":
    sys.exit(main())
