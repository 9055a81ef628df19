"""A tasks file, a dispatcher over it, and a look at what arrived."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from common.metrics import Metrics
from common.queue.connection import Server
from common.queue.keys import Keys
from common.serve import Health
from common.settings import Settings
from dispatcher.dispatcher import dispatch
from dispatcher.readers import PROGRESS_KEY, Progress
from tests.helpers import eventually


def line(task_id: object, scene: str = "code", **fields: Any) -> bytes:
    value: dict[str, Any] = {"task_type": scene, "description": "Print 1.", **fields}
    if task_id is not None:
        value["task_id"] = task_id
    return orjson.dumps(value)


def lines(ids: Iterable[str], scene: str = "code") -> bytes:
    return b"".join(line(i, scene) + b"\n" for i in ids)


class Desk:
    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.file = folder / "tasks.jsonl"
        self.output = folder / "output"
        self.metrics = Metrics()
        self.health = Health()
        self.told: list[Progress] = []

    def append(self, data: bytes) -> None:
        with self.file.open("ab") as file:
            file.write(data)

    def settings(self, **settings: Any) -> Settings:
        return Settings(output=self.output, **settings)

    async def once(self, *files: Path, **settings: Any) -> None:
        """Dispatch what is there, and end."""
        await asyncio.wait_for(self._dispatch(files, asyncio.Event(), True, settings), 30)

    @asynccontextmanager
    async def following(self, *files: Path, **settings: Any) -> AsyncIterator[asyncio.Event]:
        """Dispatch as the file grows, until the block ends; yields what tells it to end."""
        draining = asyncio.Event()
        running = asyncio.create_task(self._dispatch(files, draining, False, settings))
        try:
            yield draining
        finally:
            draining.set()
            await asyncio.wait_for(running, 10)

    async def _dispatch(
        self, files: tuple[Path, ...], draining: asyncio.Event, once: bool, settings: dict[str, Any]
    ) -> None:
        await dispatch(
            files or (self.file,), self.settings(**settings), self.server, self.metrics,
            self.health, draining=draining, once=once, progress=self.told.append,
        )  # fmt: skip

    def process(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start the dispatcher as a process of its own over the file."""
        return subprocess.Popen(
            [sys.executable, "-m", "dispatcher", str(self.file), *arguments],
            env={**os.environ, "FLEET_REDIS_URL": self.server.url,
                 "FLEET_OUTPUT": str(self.output), **env},
            stderr=(self.folder / "log").open("ab"),
        )  # fmt: skip

    def log(self) -> str:
        return (self.folder / "log").read_text()

    async def ids(self, scene: str = "code") -> list[str]:
        """Ids of all stream entries of a scene, lane by lane, in stream order."""
        found = []
        for lane in Keys(scene).lanes:
            rows = await self.server.client.xrange(lane)
            found += [fields[b"id"].decode() for _, fields in rows]
        return found

    async def arrived(self, ids: Iterable[str], scene: str = "code") -> None:
        """Wait until exactly these ids are in the scene's streams, in this order."""
        expected, found = list(ids), list[str]()

        async def same() -> bool:
            found[:] = await self.ids(scene)
            return found == expected

        try:
            await eventually(same, "the tasks", within=15)
        except AssertionError:
            assert found == expected
            raise

    def rejected(self) -> list[dict[str, Any]]:
        path = self.output / "rejected.jsonl"
        if not path.exists():
            return []
        return [orjson.loads(row) for row in path.read_bytes().splitlines()]

    def count(self, result: str) -> float:
        sample = self.metrics.registry.get_sample_value
        return sample("fleet_dispatcher_lines_total", {"result": result}) or 0.0

    async def done(self, file: Path | None = None) -> dict[str, Any]:
        """Wait until the queue says that all of the file is in; returns what it says."""
        path = (file or self.file).resolve()
        row: dict[str, Any] = {}

        async def all_in() -> bool:
            text = await self.server.client.hget(PROGRESS_KEY, str(path))
            row.clear()
            row.update(orjson.loads(text) if text else {})
            return bool(row.get("done")) and row["offset"] == path.stat().st_size

        await eventually(all_in, f"{path} dispatched", within=30)
        return row
