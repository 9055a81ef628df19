"""One server for all measurements of a run, and what every measurement needs of it."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import uvloop

from benchmarks.meter import ServerMeter
from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer
from common.queue.scene_queue import NewTask, SceneQueue
from common.task import Assignment, Task

T = TypeVar("T")

SCENE = "code"
BATCH = 500


@dataclass(frozen=True)
class Bench:
    """The server under test, a meter on it, and a folder for what a measurement leaves behind."""

    url: str
    meter: ServerMeter
    folder: Path

    def environment(self, **more: str) -> dict[str, str]:
        """Return the variables a process of the fleet needs."""
        return {"FLEET_REDIS_URL": self.url, "FLEET_OUTPUT": str(self.folder / "output"), **more}


@contextmanager
def bench() -> Iterator[Bench]:
    """Start a fresh server; stop it and remove everything in the end."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder) / "server")
        server.start()
        try:
            meter = ServerMeter(server.url)
            yield Bench(server.url, meter, Path(folder))
            meter.close()
        finally:
            server.stop()


def jobs(count: int, *, prefix: str = "t", **fields: object) -> list[NewTask]:
    """Return tasks ready for the queue: about 120 bytes of payload each."""
    sample = {"task_type": SCENE, "description": "Print 42. " * 5, **fields}
    return [
        NewTask.of([Assignment(task=Task.model_validate({"task_id": f"{prefix}{n}", **sample}))])
        for n in range(count)
    ]


def ask(url: str, what: Callable[[Server], Awaitable[T]]) -> T:
    """Run one coroutine against the server, with a client of its own."""

    async def run() -> T:
        server = Server(url)
        try:
            return await what(server)
        finally:
            await server.close()

    return uvloop.run(run())


def fill(url: str, tasks: Sequence[NewTask]) -> None:
    """Put tasks into the queue."""

    async def publish(server: Server) -> None:
        queue = SceneQueue(server, SCENE)
        for start in range(0, len(tasks), BATCH):
            await queue.publish(tasks[start : start + BATCH])

    ask(url, publish)
