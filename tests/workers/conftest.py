"""What the tests of episodes share: a clock that stands still, and a short way to one attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from common.store import Store
from common.task import Assignment
from common.trajectory import Provenance, Trajectory
from tests.helpers import task
from tests.workers.episodes import Clock, Run, Script, World
from workers.episode import Episode, EpisodeLimits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("workers.episode.time", clock)
    return clock


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def run(store: Store) -> Run:
    async def run(
        script: Script, world: World | None = None, *, hints: tuple[str, ...] = (),
        step: float = 30.0, exact: bool = True, **fields: Any,
    ) -> Trajectory:  # fmt: skip
        world = world or World()
        episode = Episode(
            Assignment(task=task(**fields), hints=hints), "a1", world, script, store,  # type: ignore[arg-type]
            Provenance(fleet_version="0", worker="w", host="h"), EpisodeLimits(step=step),
        )  # fmt: skip
        trajectory = await episode.run()
        kept = list(trajectory.messages)
        for chat in script.shown if exact else ():
            assert kept[: len(chat)] == chat, "the chat kept is not the one that was shown"
        assert world.closed == (0 if world._start else 1), "the world was left open"
        read = Trajectory.model_validate_json(trajectory.model_dump_json(by_alias=True))
        assert read == trajectory
        return trajectory

    return run
