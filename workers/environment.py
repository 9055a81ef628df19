"""The seam between the episode loop and a scene: a scene supplies an Environment, nothing else."""

from __future__ import annotations

from typing import Protocol, Self

from common.task import Task
from common.trajectory import Action, EnvironmentInfo, Step, Verdict
from workers.tools import Toolbox, ToolOutput


class Environment(Protocol):
    """One episode's fresh world. Every method may raise a `FleetError` of class infrastructure."""

    tools: Toolbox
    info: EnvironmentInfo

    async def reset(self) -> str:
        """Make the world ready; returns the first thing the agent sees ('' for nothing)."""
        ...

    async def call(self, action: Action, *, timeout: float) -> ToolOutput:
        """Do what a validated call says, within ``timeout`` seconds. What the agent got wrong is
        an output, not an exception."""
        ...

    async def verify(self, answer: str, steps: list[Step]) -> Verdict:
        """Run the task's checks on the world as the agent left it."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


class Scene(Protocol):
    """One kind of world; one per worker process, owning what its episodes share."""

    name: str

    def objections(self, task: Task) -> list[tuple[str, str]]:
        """Return ``(field, reason)`` for everything that keeps the task from running here."""
        ...

    def environment(self, task: Task, *, labels: dict[str, str]) -> Environment:
        """Return the world for one episode; entered with `async with`. Raises `InvalidTask`."""
        ...

    async def open(self) -> dict[str, str]:
        """Get ready and prove it; returns what was found.

        Raises `ConfigurationError`, and a `FleetError` where trying again may help.
        """
        ...

    async def reap(self) -> int:
        """End what killed workers left behind."""
        ...

    async def close(self) -> None: ...
