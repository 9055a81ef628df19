"""Whose time is whose: a slow world is not the agent's, nor its failure."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Self

from common.store import Store
from common.task import Assignment
from common.trajectory import Action, EnvironmentInfo, Provenance, StopReason, Verdict
from tests.helpers import task
from workers.episode import Episode
from workers.policies.scripted import ScriptedPolicy
from workers.tools import Toolbox, ToolOutput


class SlowWorld:
    """Takes longer to start than the agent may work."""

    name = "slow"
    tools = Toolbox.of((), first=(), only=False)
    info = EnvironmentInfo(backend="test")

    def objections(self, _: object) -> list[tuple[str, str]]:
        return []

    def environment(self, _: object, *, labels: dict[str, str]) -> SlowWorld:
        return self

    async def __aenter__(self) -> Self:
        await asyncio.sleep(0.3)
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def reset(self) -> str:
        await asyncio.sleep(0.1)
        return ""

    async def call(self, action: Action, *, timeout: float) -> ToolOutput:
        raise AssertionError("nobody calls")

    async def verify(self, answer: str, steps: object) -> Verdict:
        return Verdict(passed=True, reward=1.0)

    async def open(self) -> dict[str, str]:
        return {}

    async def reap(self) -> int:
        return 0

    async def close(self) -> None:
        pass


async def test_a_world_that_starts_slowly_does_not_use_up_the_agents_time(tmp_path: Path) -> None:
    episode = Episode(
        Assignment(task=task(timeout=0.2)), "a", SlowWorld(), ScriptedPolicy("nop", None),
        Store(tmp_path), Provenance(fleet_version="0", worker="w", host="h"),
    )  # fmt: skip
    trajectory = await episode.run()
    assert (trajectory.stop_reason, trajectory.failure) == (StopReason.FINISH, None)
    assert trajectory.success
