"""The fleet at a glance: what waits, runs and came of it, per scene."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import orjson
from rich import box
from rich.table import Table
from rich.text import Text

from common.queue.connection import Server
from common.queue.scene_queue import Counts, SceneQueue
from common.task import SceneName

_ROWS = (
    ("workers", None, ""), ("tasks", "tasks", "bold"),
    ("  waiting", "waiting", ""), ("  running", "running", "cyan"),
    ("  delayed", "delayed", ""), ("  in review", "reviewing", ""),
    ("attempts passed", "passed", "green"), ("attempts failed", "failed", "red"),
    ("sent back, revised", "iterate", ""), ("accepted", "accepted", "bold green"),
    ("rejected", "rejected", ""), ("unverified", "human", "yellow"), ("dead", "dead", "bold red"),
)  # fmt: skip
"""What a row is called, the count or counter behind it, and its style when it is not 0."""
_LIVE = {"waiting", "running", "delayed", "reviewing"}


@dataclass(frozen=True)
class Snapshot:
    """What the server says of all scenes that have ever had a task."""

    scenes: dict[str, Counts]
    workers: dict[str, int]
    """Living workers per scene."""
    files: dict[str, dict[str, Any]]
    """What the dispatcher says of each file: offset, size."""

    @property
    def open_tasks(self) -> int:
        return sum(counts.open_tasks for counts in self.scenes.values())


async def look(server: Server) -> Snapshot:
    """Read everything a status shows."""
    names = [scene.value for scene in SceneName]
    counts = await asyncio.gather(*(SceneQueue(server, name).counts() for name in names))
    scenes = {n: c for n, c in zip(names, counts, strict=True) if c["tasks"]}
    workers = dict.fromkeys(names, 0)

    async def cards() -> list[bytes]:
        found = server.client.scan_iter(match="fleet:{tasks:*}:w:*", count=1000)
        return [key async for key in found]

    for key in await server.persist(cards):
        workers[key.decode().split("{tasks:")[1].split("}")[0]] += 1
    told = await server.persist(lambda: server.client.hgetall("fleet:dispatcher"))
    files = {name.decode(): orjson.loads(value) for name, value in told.items()}
    return Snapshot(scenes, workers, files)


def table(snapshot: Snapshot) -> Table:
    """Return the numbers as a table, a column per scene."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    shown.add_column("")
    for name in snapshot.scenes:
        shown.add_column(name, justify="right")
    for label, key, style in _ROWS:
        cells = []
        for name, counts in snapshot.scenes.items():
            if key is None:
                value = snapshot.workers.get(name, 0)
                style = "bold red" if counts.open_tasks and not value else ""
            else:
                value = getattr(counts, key) if key in _LIVE else counts[key]
            cells.append(Text(str(value), style=style if value or key is None else "dim"))
        shown.add_row(label, *cells)
    return shown


def remarks(snapshot: Snapshot) -> list[str]:
    """Return what a person should know besides the numbers."""
    found = []
    for name, counts in snapshot.scenes.items():
        if counts.unaccounted:
            found.append(f"{name}: {counts.unaccounted} units of work unaccounted for: a bug")
        if counts.open_tasks and not snapshot.workers.get(name):
            found.append(f"{name}: no worker serves this scene; its tasks wait")
        if counts["human"]:
            found.append(f"{name}: {counts['human']} unverified: no checks, so a person must look")
        if counts["dead"]:
            found.append(f"{name}: {counts['dead']} dead letters: fleet dead list")
    for path, told in snapshot.files.items():
        behind = int(told.get("size", 0)) - int(told.get("offset", 0))
        if behind > 0:
            found.append(f"{path}: {behind:,} bytes not dispatched yet")
    return found
