"""What several tests need: tasks in one line, and waiting without sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from common.queue.connection import Server
from common.queue.scene_queue import NewTask
from common.task import Assignment, Task


def task(task_id: str = "t", **fields: Any) -> Task:
    return Task.model_validate(
        {"task_id": task_id, "task_type": "code", "description": "Print 1.", **fields}
    )


def units(task_: Task) -> NewTask:
    return NewTask.of([Assignment(task=task_, sample=s) for s in range(task_.samples)])


async def eventually(
    true: Callable[[], bool | Awaitable[bool]], what: str, *, within: float = 20.0
) -> None:
    """Return once ``true()`` holds; fail naming ``what`` after ``within`` seconds."""
    deadline = time.monotonic() + within
    while True:
        held = true()
        if isinstance(held, Awaitable):
            held = await held
        if held:
            return
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        await asyncio.sleep(0.02)


async def entries_of(server: Server, stream: str) -> list[dict[str, str]]:
    """Return all entries of a stream, oldest first, as field → text, with `entry`."""
    return [
        {"entry": entry.decode(), **{k.decode(): v.decode() for k, v in fields.items()}}
        for entry, fields in await server.client.xrange(stream)
    ]
