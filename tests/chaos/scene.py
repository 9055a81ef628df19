"""A scene that only naps, and says so in a file: executions can be counted, whoever dies."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path
from typing import Self

from common.task import Task
from common.trajectory import Action, CheckResult, EnvironmentInfo, Step, Verdict
from workers.tools import Tool, Toolbox, ToolOutput, parameters

NAP = Tool(
    "nap",
    "Sleep.",
    parameters(
        ("seconds",),
        seconds={"type": "number"},
        block={"type": "boolean", "description": "Hold the event loop meanwhile."},
    ),
)


def line(task_id: str, scene: str, seconds: float, **more: object) -> dict[str, object]:
    """A task that naps for ``seconds``, as a line of tasks.jsonl says it."""
    nap = {"seconds": round(seconds, 3), **({"block": True} if more.pop("block", False) else {})}
    return {
        "task_id": task_id,
        "task_type": scene,
        "description": "Nap.",
        "agent": "oracle",
        "checks": [{"type": "answer", "expected": "rested"}],
        "reference": {"actions": [{"tool": "nap", "arguments": nap}], "answer": "rested"},
        "max_iterations": 1,
        **more,
    }


class NapScene:
    """Every environment appends one line to ``log`` when its action begins."""

    def __init__(self, name: str, log: Path) -> None:
        self.name = name
        self._log = log

    def objections(self, task: Task) -> list[tuple[str, str]]:
        return []

    def environment(self, task: Task, *, labels: dict[str, str]) -> NapEnvironment:
        return NapEnvironment(self._log, labels)

    async def open(self) -> dict[str, str]:
        return {"backend": "standin-nap"}

    async def reap(self) -> int:
        return 0

    async def close(self) -> None:
        pass


class NapEnvironment:
    def __init__(self, log: Path, labels: dict[str, str]) -> None:
        self.tools = Toolbox.of([NAP], first=(), only=False)
        self.info = EnvironmentInfo(backend="standin-nap")
        self._log, self._labels = log, labels

    async def reset(self) -> str:
        return ""

    async def call(self, action: Action, *, timeout: float) -> ToolOutput:
        # One write of one line: O_APPEND keeps the lines of all processes apart.
        row = f"{self._labels['task']} {self._labels['attempt']} {time.time():.3f} {os.getpid()}\n"
        fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(fd, row.encode())
        finally:
            os.close(fd)
        seconds = float(str(action.arguments["seconds"]))
        if action.arguments.get("block"):
            time.sleep(seconds)  # a handler that blocks the loop is the point
        else:
            await asyncio.sleep(seconds)
        return ToolOutput("rested")

    async def verify(self, answer: str, steps: list[Step]) -> Verdict:
        passed = answer == "rested" and all(step.success for step in steps)
        return Verdict(
            passed=passed, reward=float(passed), checks=(CheckResult(id="rested", passed=passed),)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass


class Execution:
    """One line of the log."""

    def __init__(self, row: str) -> None:
        self.task_id, self.attempt_id, at, pid = row.split()
        self.unit = "-".join(self.attempt_id.split("-")[:2])
        self.at, self.pid = float(at), int(pid)


def executions(log: Path) -> list[Execution]:
    """Every action that was begun, in the order in which they were."""
    return [Execution(row) for row in log.read_text().splitlines()] if log.exists() else []


def times_run(log: Path) -> Counter[tuple[str, str]]:
    """How often each unit (task, unit) was executed."""
    return Counter((e.task_id, e.unit) for e in executions(log))
