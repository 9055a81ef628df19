"""One worker, several scenes: none lives off the others' slots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from common.metrics import Metrics
from common.queue.committer import Committer, Dead
from common.queue.connection import Server
from common.queue.scene_queue import SceneQueue
from common.serve import Health
from common.settings import load
from common.store import Store
from common.task import Task
from tests.chaos.scene import NapScene, executions, line
from tests.helpers import eventually, units
from workers.models import Policies
from workers.slots import Running
from workers.worker import Worker


def made(server: Server, folder: Path, scenes: list[str], concurrency: int) -> Worker:
    settings = load(
        redis_url=server.url, output=folder / "out", lease=5.0, concurrency=concurrency,
        drain_grace=5.0,
    )  # fmt: skip
    metrics = Metrics()
    return Worker(
        settings, server, Store(settings.output),
        [NapScene(name, folder / "log") for name in scenes],
        Policies([], deadline=1.0, metrics=metrics), metrics, Health(), consumer="w",
    )  # fmt: skip


@asynccontextmanager
async def working(
    server: Server, folder: Path, scenes: list[str], concurrency: int
) -> AsyncIterator[Path]:
    """A worker in this process; yields the log of what its scenes executed."""
    draining = asyncio.Event()
    running = asyncio.create_task(made(server, folder, scenes, concurrency).run(draining))
    try:
        yield folder / "log"
    finally:
        draining.set()
        await asyncio.wait_for(running, 20)


async def test_a_lease_whose_commit_is_under_way_is_not_taken_for_lost(
    server: Server, tmp_path: Path
) -> None:
    await publish(server, "code", 2, 0.0)
    queue = SceneQueue(server, "code", consumer="w")
    worker = made(server, tmp_path, ["code"], 2)
    committing, running = [
        Running(lease, queue, asyncio.create_task(asyncio.sleep(60)))
        for lease in await queue.take(2)
    ]
    committing.committing = True
    for one in (committing, running):
        worker._running[one.lease] = one
        worker._stop("lost", one.lease)
    assert running.task is not None and committing.task is not None
    await asyncio.wait([running.task], timeout=10)
    assert (running.stopped, running.task.cancelled()) == ("lost", True)
    assert (committing.stopped, committing.task.done()) == ("", False)
    committing.task.cancel()


async def publish(server: Server, scene: str, count: int, seconds: float) -> None:
    tasks = [Task.model_validate(line(f"{scene}-{n}", scene, seconds)) for n in range(count)]
    await SceneQueue(server, scene).publish([units(task) for task in tasks])


async def test_a_small_scene_gets_its_share_beside_a_large_one(
    server: Server, tmp_path: Path
) -> None:
    await publish(server, "code", 60, 0.05)
    await publish(server, "web", 12, 0.05)
    async with working(server, tmp_path, ["code", "web"], 4) as log:
        await eventually(lambda: len(executions(log)) >= 40, "40 tasks have begun")
    began = [e.task_id.split("-")[0] for e in executions(log)]
    assert began[:30].count("web") == 12  # half of the slots as long as it had work
    assert began[:4].count("web") == 2  # from the first


async def test_no_scene_starves_where_there_are_fewer_slots_than_scenes(
    server: Server, tmp_path: Path
) -> None:
    scenes = ["code", "web", "mobile"]
    for scene in scenes:
        await publish(server, scene, 12, 0.02)
    async with working(server, tmp_path, scenes, 2) as log:
        await eventually(lambda: len(executions(log)) >= 12, "12 tasks have begun")
    began = [e.task_id.split("-")[0] for e in executions(log)][:12]
    assert all(began.count(scene) >= 3 for scene in scenes)


async def test_consumers_long_gone_are_forgotten(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(server, "code", 2, 0.0)
    for name in ("x", "y"):
        queue = SceneQueue(server, "code", consumer=name)
        await Committer(queue).commit((await queue.take(1))[0], Dead("invalid_task", "no"))
    real = SceneQueue.gc
    monkeypatch.setattr(SceneQueue, "gc", lambda queue, idle=0.0: real(queue, idle))
    async with working(server, tmp_path, ["code"], 1):
        await eventually(lambda: _consumers(server), "nobody else is listed")


async def _consumers(server: Server) -> bool:
    rows = await server.client.xinfo_consumers(SceneQueue(server, "code").keys.lanes[1], "workers")
    return {row["name"] for row in rows} <= {b"w"}


async def test_long_tasks_of_one_scene_give_way_as_they_end(server: Server, tmp_path: Path) -> None:
    await publish(server, "code", 12, 0.4)
    async with working(server, tmp_path, ["code", "web"], 4) as log:
        await eventually(lambda: len(executions(log)) == 4, "one scene holds every slot")
        await publish(server, "web", 4, 0.05)
        await eventually(lambda: len(executions(log)) == 16, "all have begun")
    began = [e.task_id.split("-")[0] for e in executions(log)]
    assert began[4:9].count("web") >= 3  # the next slots that came free


async def test_a_scene_alone_has_all_slots(server: Server, tmp_path: Path) -> None:
    await publish(server, "code", 4, 2.0)
    async with working(server, tmp_path, ["code", "web"], 4) as log:
        await eventually(lambda: len(executions(log)) == 4, "all have begun")
        assert (await SceneQueue(server, "code").counts())["committed"] == 0  # none had to wait
