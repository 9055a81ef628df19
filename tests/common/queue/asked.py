"""A task whose unit waits for people, and what the queue says of it."""

from __future__ import annotations

from typing import Any

import orjson

from common.approvals import Wait
from common.queue.connection import Server
from common.queue.scene_queue import Counts, SceneQueue
from common.task import Assignment
from common.waits import Waits
from tests.common.waiting import a_wait, approval, green, yellow
from tests.helpers import entries_of, task

BEFORE = Assignment(task=task())
MEMORY = "task.constraints.memory_mb"


def waits(server: Server) -> Waits:
    return Waits(server, "code")


def red(people: int = 1) -> Wait:
    return a_wait(BEFORE, approval("red", MEMORY, 512, people=people))


def a_red(n: int, **fields: Any) -> Wait:
    before = Assignment(task=task(f"t{n}"))
    return a_wait(before, approval(f"a{n}", MEMORY, 512), **fields)


def both(**fields: Any) -> Wait:
    """A yellow and a red one, and a green change that goes with whatever is decided."""
    [hints] = yellow(BEFORE, "yellow").approvals
    return a_wait(
        BEFORE, hints, approval("red", MEMORY, 512), greens=(green(BEFORE),), **fields
    )  # fmt: skip


async def counts(server: Server) -> Counts:
    found = await SceneQueue(server, "code").counts()
    assert found.unaccounted == 0
    return found


async def queued(server: Server) -> list[Assignment]:
    """The revisions in the lanes."""
    lanes = [await entries_of(server, lane) for lane in SceneQueue(server, "code").keys.lanes]
    return [Assignment.model_validate_json(row["p"]) for lane in lanes for row in lane]


async def logged(server: Server) -> list[dict[str, Any]]:
    """What the log of decisions says of people's words, and of what they were not to say."""
    rows = await entries_of(server, SceneQueue(server, "code").keys.decisions)
    return [{"decision": r["decision"], **orjson.loads(r["p"])} for r in rows if r["p"] != "{}"]


async def state_of(server: Server, approval_id: str) -> str:
    found = await waits(server).find(approval_id)
    assert found is not None
    return found[1].state
