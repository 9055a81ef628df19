"""How far each scene has got in a file, and what a person may know of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import orjson

from common.queue.connection import Server
from common.queue.scene_queue import NewTask, PublishReply, SceneQueue
from dispatcher.tail import Position

REJECTED = "rejected"
"""The reader of lines that belong to no scene. It has a position like the others, so that each
bad line is reported once however often the lines around it are read again."""
PROGRESS_KEY = "fleet:dispatcher"
"""Hash: file → JSON of `Progress` and the time `at` (Unix seconds). For people; nothing reads it
back."""


@dataclass(frozen=True)
class Progress:
    """How much of a file is in the queue."""

    file: str
    """Its resolved absolute path: the name of its positions in the queue."""
    offset: int
    """Bytes that every scene has behind it."""
    size: int
    """Bytes of the file."""
    line: int
    """Newlines up to ``offset``."""
    done: bool
    """All complete lines are in the queue; what is left has no newline yet."""

    async def write(self, server: Server) -> None:
        row = {**asdict(self), "at": round(time.time(), 3)}
        del row["file"]
        text = orjson.dumps(row)
        await server.persist(lambda: server.client.hset(PROGRESS_KEY, self.file, text))


class Reader:
    """One scene's place in one file. The queue keeps it; this is our copy."""

    def __init__(self, server: Server, name: str, file: str) -> None:
        self.name = name
        self.position = Position()
        self._queue = SceneQueue(server, name)
        self._file = file
        self._stored = ""
        self.forgotten = False
        """Somebody flushed the server, or put another in its place."""

    async def load(self) -> None:
        self._take(await self._queue.position(self._file))

    async def blank(self) -> bool:
        """Does the queue know neither our position nor any task of this scene?"""
        return not self._stored and not (await self._queue.counts())["tasks"]

    def skip(self, end: Position) -> None:
        """Move to ``end``, past lines that are none of ours.

        Only our copy moves, and the queue's with the next `publish`: whoever starts again in
        between reads those lines once more, and passes over them once more.
        """
        self.position = self.position.after(end)

    @property
    def skipped(self) -> bool:
        """Are we further than the queue knows?"""
        return bool(self.position.offset) and str(self.position) != self._stored

    async def publish(
        self, tasks: Sequence[NewTask], end: Position, max_backlog: int
    ) -> PublishReply:
        """Queue the scene's tasks up to ``end`` and move there, in one call.

        When somebody else moved the position, ours becomes theirs; whether it fits the file is
        seen at the next read. When the queue has forgotten where we were, `forgotten` is set.
        Raises `MemoryFull` where less of it may fit: for a single task room is waited for.
        """
        new = str(self.position.after(end))
        reply = await self._queue.publish(
            tasks, file=self._file, expected=self._stored, new=new, max_backlog=max_backlog,
            wait_for_memory=len(tasks) <= 1,
        )  # fmt: skip
        if reply.outcome == "published":
            self._take(new)
        elif reply.outcome == "moved":
            if self._stored and not reply.position:
                self._forget()
            else:
                self._take(reply.position)
        return reply

    async def look(self) -> None:
        """Set `forgotten` if the queue knows no position any more, when nothing is published."""
        if self._stored and not await self._queue.position(self._file):
            self._forget()

    async def known(self, task_ids: Sequence[str]) -> set[str]:
        """Return those of which the queue has a ledger: it will not run them again."""
        server, ledger = self._queue.server, self._queue.keys.ledger

        async def ask() -> list[bool]:
            async with server.client.pipeline(transaction=False) as pipe:
                for task_id in task_ids:
                    pipe.hexists(ledger(task_id), "st")
                return list(await pipe.execute())

        found = await server.persist(ask) if task_ids else []
        return {task_id for task_id, there in zip(task_ids, found, strict=True) if there}

    def restart(self, size: int) -> None:
        """Begin the file, now ``size`` bytes long, again: it is not the one we read."""
        self.position = self.position.restarted(size)

    def recover(self, size: int) -> None:
        """Begin the file, now ``size`` bytes long, again: the queue is not the one we wrote to."""
        self.forgotten = False
        self.position = self.position.recovering(size)

    def finish_reread(self) -> None:
        """All that is in the file now has been read; what comes next is new."""
        self.position = replace(self.position, reread=0, recover=0)

    def _forget(self) -> None:
        """Take note that our position is gone; we still know how far we had read."""
        self.forgotten, self._stored = True, ""

    def _take(self, text: str) -> None:
        self._stored, self.position = text, Position.parse(text)
