"""A few real workers on one server, without dispatcher or reviewer: the lease under test."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer
from common.queue.scene_queue import NewTask, SceneQueue
from common.task import Assignment, Task
from tests.chaos.process import Victim
from tests.chaos.proxy import Proxy
from tests.chaos.scene import Execution, executions, line
from tests.helpers import eventually


class Crew:
    """Worker processes over the napping scene `code`; use as an async context manager."""

    def __init__(self, folder: Path, *, workers: int, lease: float, concurrency: int = 1) -> None:
        self.folder = folder
        self.lease = lease
        self.executed = folder / "executed"
        self._size = (workers, concurrency)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        valkey = EmbeddedServer(self.folder / "valkey")
        valkey.start()
        self._stack.callback(valkey.stop)
        self.server = Server(valkey.url, patience=30)
        self._stack.push_async_callback(self.server.close)
        self.queue = SceneQueue(self.server, "code")
        workers, concurrency = self._size
        self.workers = []
        argv = ["tests.chaos.worker", str(self.executed), "code", "--concurrency"]
        for n in range(workers):
            proxy = await self._stack.enter_async_context(Proxy(valkey.url))
            worker = Victim(
                f"worker{n}", [*argv, str(concurrency)], self.folder, proxy,
                FLEET_OUTPUT=self.folder / "output", FLEET_LEASE=self.lease,
                FLEET_MAX_DELIVERIES=1000,
            )  # fmt: skip
            self.workers.append(worker)
        await self.ready()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for worker in self.workers:
            worker.proxy.heal()
        await asyncio.gather(*(asyncio.to_thread(w.end) for w in self.workers))
        await self._stack.aclose()

    async def ready(self) -> None:
        """Return once every worker may take over others' work (a whole lease of good beats)."""
        await eventually(lambda: all(w.consumer for w in self.workers), "workers up", within=30)

        async def cards() -> bool:
            keys = [self.queue.keys.card(w.consumer) for w in self.workers]
            return int(await self.server.client.exists(*keys)) == len(keys)

        await eventually(cards, "heartbeats", within=30)
        # No condition shows that a lease of time has passed but time itself.
        await asyncio.sleep(1.1 * self.lease)

    async def give(self, task_id: str, seconds: float, **more: object) -> None:
        """Queue a task that naps."""
        task = Task.model_validate(line(task_id, "code", seconds, **more))
        samples = [Assignment(task=task, sample=n) for n in range(task.samples)]
        await self.queue.publish([NewTask.of(samples)])

    async def begun(self, task_id: str, times: int, *, within: float = 30.0) -> Execution:
        """Wait until the task has been begun for the ``times``-th time; return that execution."""
        found: list[Execution] = []

        def there() -> bool:
            found[:] = [e for e in executions(self.executed) if e.task_id == task_id]
            return len(found) >= times

        await eventually(there, f"{task_id} begun {times} times", within=within)
        return found[times - 1]

    async def committed(self, units: int, *, within: float = 60.0) -> None:
        """Wait until that many units have committed, and no more than that."""

        async def enough() -> bool:
            return (await self.queue.counts())["committed"] >= units

        await eventually(enough, f"{units} units are committed", within=within)
        counts = await self.queue.counts()
        assert (counts["committed"], counts.unaccounted) == (units, 0)

    def by_pid(self, pid: int) -> Victim:
        return next(w for w in self.workers if w.process.pid == pid)
