"""A killed worker's episode goes on where it was: paid answers come back, actions run again."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.process import free_port
from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer
from common.queue.scene_queue import SceneQueue
from common.task import Task
from common.trajectory import Trajectory
from fleet.show import transcript
from tests.e2e.fleet import attempts, process
from tests.e2e.test_model_faults import standin
from tests.helpers import eventually, units
from workers.sandboxes.nsjail.provider import NsjailProvider

STEPS = 6
ASKING = 2
"""The turn whose first request is never answered: its worker is killed waiting."""
ACTING = 4
"""The turn whose action takes long: time to kill who runs it."""


def script() -> dict[str, Any]:
    """Five commands, each of which sees what all before it did, and the end."""
    turns: list[dict[str, Any]] = []
    for n in range(STEPS - 1):
        pause = "sleep 3; " if n == ACTING else ""
        command = f"echo {n} >> log; {pause}tr '\\n' ' ' < log"
        turns.append({"tool": "run_shell", "arguments": {"command": command}})
    turns.append({"tool": "finish", "arguments": {"answer": ""}})
    return {"t": {"turns": turns, "faults": {str(ASKING + 1): "stall"}}}


def line(**more: Any) -> Task:
    written = "".join(f"{n}\n" for n in range(STEPS - 1))
    check = {"type": "file", "path": "log", "expected": written}
    return Task.model_validate(
        {"task_id": "t", "task_type": "code", "description": "Count.", "checks": [check], **more}
    )


class Stage:
    """A queue with the task in it, a model, and workers to be killed."""

    def __init__(self, folder: Path, server: Server, settings: dict[str, str]) -> None:
        self.folder = folder
        self.queue = SceneQueue(server, "code")
        self.journal = self.queue.keys.journal("t", "r1-s0")
        self._settings = settings

    @contextmanager
    def worker(self, **env: Any) -> Iterator[subprocess.Popen[bytes]]:
        with process(
            "workers", "code", "--concurrency", 1, log=self.folder / "log",
            FLEET_REDIS_URL=self.queue.server.url, FLEET_OUTPUT=self.folder / "out",
            **self._settings, **env,
        ) as running:  # fmt: skip
            yield running

    def asked(self) -> list[dict[str, Any]]:
        """The requests for the task's turns, as the model saw them."""
        url = self._settings["FLEET_LLM_BASE_URL"].removesuffix("/v1") + "/standin/journal"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return [e for e in json.load(answer)["entries"] if e["task"] == "t"]

    def is_asking(self) -> bool:
        return any(e["turn"] == ASKING and e["left"] is None for e in self.asked())

    async def answers(self) -> int:
        return int(await self.queue.server.client.hlen(self.journal))

    async def committed(self) -> Trajectory:
        async def is_committed() -> bool:
            return (await self.queue.counts())["committed"] == 1

        await eventually(is_committed, "the attempt is committed", within=60)
        [(trajectory, _)] = attempts(self.folder / "out")["t"]
        return trajectory


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    valkey = EmbeddedServer(tmp_path / "valkey")
    valkey.start()
    server = Server(valkey.url, patience=20)
    try:
        with standin(tmp_path, script()) as settings:
            yield Stage(tmp_path, server, settings)
    finally:
        await server.close()
        valkey.stop()
        jails = NsjailProvider()  # of the workers that were killed
        await jails.reap()
        await jails.close()


def calls_counted(port: int) -> int:
    """Model calls in a worker's metrics, its own question at the start left out."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        rows = answer.read().decode().splitlines()
    name = "gen_ai_client_operation_duration_seconds_count"
    return int(sum(float(row.split()[-1]) for row in rows if row.startswith(name))) - 1


def observations(trajectory: Trajectory) -> list[str]:
    return [step.observation.text.split("\n")[0].strip() for step in trajectory.steps]


SEEN = ["0", "0 1", "0 1 2", "0 1 2 3", "0 1 2 3 4", ""]


async def test_a_killed_episode_is_finished_with_one_request_asked_twice(stage: Stage) -> None:
    await stage.queue.publish([units(line())])
    with stage.worker() as first:
        await eventually(stage.is_asking, "the model thinks", within=60)
        assert await stage.answers() == ASKING
        first.kill()
    with stage.worker() as second:

        async def acts() -> bool:
            return await stage.answers() == ACTING + 1

        await eventually(acts, "the paid answer is kept, its action runs", within=60)
        second.kill()
    port = free_port()
    with stage.worker(FLEET_METRICS_PORT=port):
        trajectory = await stage.committed()
        counted = await asyncio.to_thread(calls_counted, port)

    # Killed while the model thought: that answer was never seen. Killed while it acted: none lost.
    per_turn = Counter(e["turn"] for e in stage.asked())
    assert per_turn == {n: 2 if n == ASKING else 1 for n in range(STEPS)}
    assert len({e["attempt"] for e in stage.asked()}) == 3
    assert trajectory.success, "in a fresh world, the last actions alone would not have done"
    assert observations(trajectory) == SEEN
    assert [s.replayed for s in trajectory.steps] == [True] * (STEPS - 1) + [False]
    assert trajectory.replayed_steps == STEPS - 1
    assert (trajectory.usage.calls, trajectory.replayed_usage.calls) == (STEPS, STEPS - 1)
    assert {s.model_source for s in trajectory.steps} == {"standin"}
    assert trajectory.agent.model_source == "standin"
    told = Console(record=True, width=120, file=StringIO())
    told.print(transcript(trajectory, None, full=False))
    assert told.export_text().count("replayed answer") == STEPS - 1
    assert counted == 1, "answers that were not asked for are not counted as calls"
    assert await stage.answers() == 0, "the commit forgets what was kept for this moment"


async def test_an_environment_that_cannot_be_run_again_starts_from_nothing(stage: Stage) -> None:
    await stage.queue.publish([units(line(resumable=False))])
    with stage.worker() as first:
        await eventually(stage.is_asking, "the model thinks", within=60)
        assert await stage.answers() == 0
        first.kill()
    with stage.worker():
        trajectory = await stage.committed()
    per_turn = Counter(e["turn"] for e in stage.asked())
    assert per_turn == {n: 2 if n <= ASKING else 1 for n in range(STEPS)}
    assert trajectory.success
    assert observations(trajectory) == SEEN
    assert (trajectory.replayed_steps, trajectory.replayed_usage.calls) == (0, 0)
