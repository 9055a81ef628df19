"""Finding dead letters: newest first, a page at a time, by reason, task, age and stage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from common.presence import clock
from common.queue.connection import Server
from common.queue.keys import Keys
from common.queue.pages import pages


@dataclass(frozen=True)
class Letter:
    """One unit of work that ended without a result."""

    scene: str
    entry: str
    fields: dict[str, str]
    """As in lua/_shared.lua: id, u, stage, lane, reason, error, p, deliveries, history."""

    def __getitem__(self, name: str) -> str:
        return self.fields.get(name, "")

    @property
    def at(self) -> int:
        """When it was buried: Unix, ms, the server's clock."""
        return int(self.entry.split("-")[0])

    @property
    def order(self) -> tuple[int, int]:
        at, number = self.entry.split("-")
        return int(at), int(number)


@dataclass(frozen=True)
class Filter:
    """Which letters are meant; what is None says nothing."""

    scenes: Sequence[str]
    reason: str | None = None
    """Or the kind of failure that used up the retries, which begins the error."""
    task: str | None = None
    """A glob over the task id."""
    since: float | None = None
    """Buried within so many seconds."""
    older_than: float | None = None
    """Buried before so many seconds."""
    stage: str | None = None
    limit: int | None = None
    """The newest so many of those that match."""

    def takes(self, letter: Letter) -> bool:
        return (
            (
                self.reason in (None, letter["reason"])
                or letter["error"].startswith(f"{self.reason}:")
            )
            and self.stage in (None, letter["stage"])
            and (self.task is None or fnmatchcase(letter["id"], self.task))
        )


async def find(
    server: Server, wanted: Filter, ids: Sequence[str] = (), *, payloads: bool = False
) -> list[Letter]:
    """Return the letters that match, newest first; of those only named entries or tasks, if any.

    Without ``payloads`` they come without task and history, which is what is big about them.
    """
    now = int(await clock(server) * 1000)
    youngest = now if wanted.older_than is None else now - int(wanted.older_than * 1000)
    oldest = 0 if wanted.since is None else now - int(wanted.since * 1000)

    async def one(scene: str) -> list[Letter]:
        entries, tasks = await _told_apart(server, scene, ids)
        found = [e for e in entries if oldest <= e.at <= youngest and wanted.takes(e)]
        if not ids or tasks:
            low, high = f"{max(0, oldest)}", f"{max(0, youngest)}"
            rows = pages(server, Keys(scene).dead, low=low, high=high, newest_first=True)
            async for entry, fields in rows:
                letter = Letter(scene, entry, fields)
                if wanted.limit is not None and len(found) >= wanted.limit:
                    break
                if wanted.takes(letter) and (not ids or letter["id"] in tasks):
                    found.append(letter if payloads else _light(letter))
        return found

    every = await asyncio.gather(*(one(scene) for scene in wanted.scenes))
    # A letter may be named twice: by its entry and by its task.
    found = {(e.scene, e.entry): e for letters in every for e in letters}
    return sorted(found.values(), key=lambda e: e.order, reverse=True)[: wanted.limit]


async def total(server: Server, scenes: Sequence[str]) -> int:
    """Return how many dead letters there are."""

    async def ask() -> list[int]:
        async with server.client.pipeline(transaction=False) as pipe:
            for scene in scenes:
                pipe.xlen(Keys(scene).dead)
            return list(await pipe.execute())

    return sum(await server.persist(ask))


async def _told_apart(
    server: Server, scene: str, ids: Sequence[str]
) -> tuple[list[Letter], set[str]]:
    """Return the letters that ``ids`` name by entry, and what of them must name tasks."""
    entries, tasks = [], set()
    for name in ids:
        letter = await _entry(server, scene, name) if _looks_like_entry(name) else None
        if letter is not None:
            entries.append(letter)
        else:
            tasks.add(name)
    return entries, tasks


def _looks_like_entry(name: str) -> bool:
    """A task id may look like one too, such as 2024-01."""
    at, dash, number = name.partition("-")
    return bool(dash) and all(part.isascii() and part.isdigit() for part in (at, number)) and all(
        int(part) < 1 << 64 for part in (at, number)
    )  # fmt: skip


async def _entry(server: Server, scene: str, entry: str) -> Letter | None:
    async for _, fields in pages(server, Keys(scene).dead, low=entry, high=entry):
        return Letter(scene, entry, fields)
    return None


def _light(letter: Letter) -> Letter:
    fields = {k: v for k, v in letter.fields.items() if k not in ("p", "history")}
    return Letter(letter.scene, letter.entry, fields)
