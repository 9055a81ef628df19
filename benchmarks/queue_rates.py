"""Publish, and take + commit, beside the same work by a bare redis-py pipeline, in one run.

The bare side has no ledger, no duplicates, no file position, no fencing and no events: it is the
limit of client and server, not a peer.
"""

from __future__ import annotations

import asyncio
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from common.queue.committer import Committer, Done
from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer
from common.queue.scene_queue import SceneQueue
from common.task import Assignment, Task

N = 20_000
BATCH = 500
TAKE = 100
ROUNDS = 3


def _assignments() -> list[list[Assignment]]:
    return [
        [
            Assignment(
                task=Task.model_validate(
                    {"task_id": f"t{n}", "task_type": "code", "description": "Print 42." * 4}
                )
            )
        ]
        for n in range(N)
    ]


async def _bare_publish(server: Server, tasks: list[list[Assignment]]) -> None:
    for start in range(0, N, BATCH):
        pipe = server.client.pipeline(transaction=False)
        for [assignment] in tasks[start : start + BATCH]:
            fields: dict[Any, Any] = {
                "id": assignment.task.task_id,
                "u": "r1-s0",
                "p": assignment.encode(),
            }
            pipe.xadd("bare", fields)
        await pipe.execute()


async def _publish(server: Server, tasks: list[list[Assignment]]) -> None:
    queue = SceneQueue(server, "code", consumer="bench")
    at = ""
    for start in range(0, N, BATCH):
        new = str(start + BATCH)
        await queue.publish(tasks[start : start + BATCH], file="f", expected=at, new=new)
        at = new


async def _bare_commit(server: Server, _: list[list[Assignment]]) -> None:
    client: Any = server.client
    await client.xgroup_create("bare", "workers", id="0", mkstream=True)
    left = N
    while left:
        [[_, rows]] = await client.xreadgroup("workers", "bench", {"bare": ">"}, count=TAKE)
        ids = [entry for entry, _ in rows]
        pipe = client.pipeline(transaction=False)
        pipe.xack("bare", "workers", *ids)
        pipe.xdel("bare", *ids)
        await pipe.execute()
        left -= len(ids)


async def _commit(server: Server, _: list[list[Assignment]]) -> None:
    queue = SceneQueue(server, "code", consumer="bench")
    committer = Committer(queue)
    left = N
    while left:
        leases = await queue.take(TAKE)
        event = b'{"attempt_id":"a","passed":true}'
        await asyncio.gather(*(committer.commit(x, Done(x.attempt_id, event)) for x in leases))
        left -= len(leases)


async def _measure(
    server: Server,
    work: Callable[[Server, list[list[Assignment]]], Awaitable[None]],
    tasks: list[list[Assignment]],
) -> tuple[float, float, float]:
    """Return tasks per second, and microseconds of CPU per task of the client and the server."""

    async def server_cpu() -> float:
        info = await server.client.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    before, used, clock = await server_cpu(), _cpu(), time.perf_counter()
    await work(server, tasks)
    wall, mine, theirs = time.perf_counter() - clock, _cpu() - used, await server_cpu() - before
    return N / wall, mine / N * 1e6, theirs / N * 1e6


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def run(url: str) -> Table:
    server = Server(url)
    tasks = _assignments()
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(ROUNDS):
        await server.client.flushall()
        for name, work in (
            ("bare pipeline: XADD", _bare_publish),
            ("publish: exactly once, with ledger and position", _publish),
            ("bare pipeline: XREADGROUP, XACK + XDEL", _bare_commit),
            ("take + fenced commit with event and ledger", _commit),
        ):
            rows.setdefault(name, []).append(await _measure(server, work, tasks))
    await server.close()
    table = Table(title=f"queue, {N} tasks, median of {ROUNDS}", title_justify="left")
    for heading in ("", "tasks/s", "client µs/task", "server µs/task", "of bare"):
        table.add_column(heading, justify="left" if not heading else "right")
    bare = 1.0
    for name, measured in rows.items():
        rate, mine, theirs = (statistics.median(column) for column in zip(*measured, strict=True))
        bare = rate if name.startswith("bare") else bare
        table.add_row(name, f"{rate:,.0f}", f"{mine:.1f}", f"{theirs:.1f}", f"{rate / bare:.0%}")
    return table


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        try:
            Console().print(uvloop.run(run(server.url)))
        finally:
            server.stop()
