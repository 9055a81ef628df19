"""One file's way into the queue, a chunk at a time: tail → parse → publish.

While one chunk is on its way to the server the next is read and parsed, so that the two work at
the same time. A scene without work in a chunk only remembers how far it has got; the queue is told
now and then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.failures import ConfigurationError
from common.logs import logger
from common.metrics import Metrics
from common.queue.connection import MemoryFull, Server
from common.queue.scene_queue import NewTask, PublishReply
from common.settings import Settings
from common.task import SceneName
from dispatcher import tail
from dispatcher.finished import Finished
from dispatcher.parse import Bad, Work, parse, too_long
from dispatcher.readers import REJECTED, Progress, Reader
from dispatcher.rejects import Reject
from dispatcher.report import Report
from dispatcher.tail import Chunk, Line, Position

log = logger("dispatcher")

_REMIND = 16
"""Chunks after which the queue is told of positions that moved without work: what is read again
at most when a dispatcher starts anew."""
_LOOK = 2.0
"""Seconds between looks whether the queue still knows us, when there is nothing to publish."""
_BATCH_UNITS = 1000
_BATCH_BYTES = 4 << 20
"""Most that one call puts into the queue (a single line may be more): the server does nothing
else meanwhile."""
_BLOCKED = 0.5
"""Seconds before a full scene is offered its lines again."""
_SETTLED = 2.0
"""Seconds without change after which a rewritten file counts as read again."""
_UNENDED = 5.0
"""Seconds before we mention that a last line waits for its newline."""

Parsed = list[tuple[Line, Work | Bad | None]]


class Scenes:
    """The scenes of this process, and which of them are full. Shared by all files."""

    def __init__(self, settings: Settings, server: Server, metrics: Metrics) -> None:
        self.settings = settings
        self.server = server
        self.metrics = metrics
        self._blocked: dict[str, float] = {}

    def blocked(self, name: str) -> bool:
        return time.monotonic() < self._blocked.get(name, 0.0)

    def set_blocked(self, name: str, full: bool) -> None:
        if full and name not in self._blocked:
            log.info("scene.full", scene=name, max_backlog=self.settings.max_backlog)
        if full:
            self._blocked[name] = time.monotonic() + _BLOCKED
        else:
            self._blocked.pop(name, None)
        self.metrics.backpressure.labels(name).set(full)


class Follower:
    """One file, read on behalf of every scene, each from its own position."""

    def __init__(self, path: Path, key: str, scenes: Scenes, report: Report, *, once: bool) -> None:
        self.key = key
        self.done = False
        self._path = path
        self._scenes = scenes
        self._report = report
        self._once = once
        self._rejected = Reader(scenes.server, REJECTED, key)
        self._readers = [Reader(scenes.server, scene, key) for scene in SceneName]
        self._readers.append(self._rejected)
        self._size = -1
        self._seen = 0
        self._trouble = ""
        self._still: tuple[int, float] = (-1, 0.0)
        self._mentioned = -1
        self._shared = False
        self._ahead: tuple[Chunk, Parsed] | None = None
        self._since_reminder = 0
        self._portion = _BATCH_BYTES
        """Most that one call offers: less than that once the server had no memory for it."""
        self._looked = 0.0
        self._finished = Finished(scenes.settings.output)
        self._before = 0

    async def load(self) -> None:
        """Ask the queue how far each scene has got."""
        await asyncio.gather(*(reader.load() for reader in self._readers))
        if not (self._scenes.settings.output / "trajectories").is_dir():
            return
        for reader in self._readers:
            if await reader.blank():  # a new server, or one that was flushed while we were away
                with suppress(OSError):
                    reader.recover(self._path.stat().st_size)

    def progress(self) -> Progress | None:
        """How far the slowest scene is; None as long as the file has not been there."""
        if self._size < 0:
            return None
        first = min((reader.position for reader in self._readers), key=lambda p: p.offset)
        return Progress(self.key, first.offset, self._size, first.line, self.done)

    async def step(self) -> bool:
        """Publish the first chunk some scene waits for; False when there is nothing to do now."""
        self.done = False
        for place in self._places():
            try:
                chunk, parsed = await self._prepare(place)
            except tail.Rewritten as now:
                self._begin_again(place, now.size)
                return True
            except OSError as error:
                self._unreadable(error)
                return False
            self._size, self._trouble = max(chunk.size, chunk.end.offset), ""
            if chunk.lines:
                await self._publish(chunk, parsed)
                return True
        if any(reader.skipped for reader in self._free()):
            await self._remind()
            return True
        if time.monotonic() - self._looked > _LOOK:
            self._looked = time.monotonic()
            for reader in self._readers:
                await reader.look()
                if reader.forgotten:
                    self._forgotten(reader)
                    return True
        self._at_end()
        return False

    def _free(self) -> list[Reader]:
        return [reader for reader in self._readers if not self._scenes.blocked(reader.name)]

    def _places(self) -> list[Position]:
        """Where those scenes are that can go on, first place first. Usually it is one place."""
        places = {(p.offset, p.anchor): p for p in (reader.position for reader in self._free())}
        return [places[key] for key in sorted(places)]

    # -- tail and parse ----------------------------------------------------------------------

    async def _prepare(self, place: Position) -> tuple[Chunk, Parsed]:
        """Return the chunk behind ``place``, parsed. Raises `tail.Rewritten` and OSError."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            start = ahead[0].start
            if (start.offset, start.anchor) == (place.offset, place.anchor):
                return ahead
        chunk = await asyncio.to_thread(
            tail.read, self._path, place, unended=self._once,
            max_line=self._scenes.settings.max_line_bytes,
        )  # fmt: skip
        return self._parse(chunk)

    async def _look_ahead(self, place: Position) -> None:
        """Prepare what comes next. What is wrong with it is found when its turn comes."""
        with suppress(tail.Rewritten, OSError):
            self._ahead = await self._prepare(place)
            if not self._ahead[0].lines:
                self._ahead = None  # the file may have grown by then

    def _parse(self, chunk: Chunk) -> tuple[Chunk, Parsed]:
        """Parse up to where one call would hold too much for the server or the backlog.

        Returns the chunk, cut there, and what became of each of its lines.
        """
        settings = self._scenes.settings
        limit, most = settings.max_line_bytes, min(_BATCH_UNITS, settings.max_backlog)
        units = weight = 0
        parsed: Parsed = []
        for line in chunk.lines:
            if line.size > limit:
                parsed.append((line, too_long(line.size, limit)))
                continue
            item = parse(line.data, utf16=chunk.utf16, agent=self._scenes.settings.agent)
            if isinstance(item, Work):
                units += len(item.new.payloads)
                weight += item.weight
                if parsed and (units > most or weight > self._portion):
                    break
            parsed.append((line, item))
        return chunk.cut(len(parsed)), parsed

    # -- publish -----------------------------------------------------------------------------

    async def _publish(self, chunk: Chunk, parsed: Parsed) -> None:
        """Move every scene that waits inside the chunk to its end, its tasks going in with it."""
        here = [reader for reader in self._free() if chunk.covers(reader.position)]
        work: dict[str, list[tuple[Line, Work]]] = {reader.name: [] for reader in here}
        bad: list[Reject] = []
        blank = 0
        for line, item in parsed:
            if isinstance(item, Work):
                if (tasks := work.get(item.scene)) is not None:
                    tasks.append((line, item))
            elif REJECTED not in work or line.offset < self._rejected.position.offset:
                continue  # dealt with when it was first read
            elif item is None:
                blank += 1
            else:
                bad.append(Reject(self.key, line, item.problems, item.task_id))
        await self._report.write(bad)  # first: no position may pass a line that nobody can find
        found: list[Reject] = []

        async def send(sending: Coroutine[Any, Any, list[Reject]]) -> None:
            found.extend(await sending)

        async with asyncio.TaskGroup() as group:
            for reader in here:
                if reader is self._rejected and (bad or blank):
                    group.create_task(send(self._pass_bad(chunk.end, len(bad), blank)))
                elif reader is not self._rejected and work[reader.name]:
                    group.create_task(send(self._offer(reader, work[reader.name], chunk.end)))
                else:
                    reader.skip(chunk.end)
            await asyncio.sleep(0)  # they are on their way to the server
            await self._look_ahead(chunk.end)
        await self._report.write(found)
        self._since_reminder += 1
        if self._since_reminder >= _REMIND:
            await self._remind()

    async def _remind(self) -> None:
        """Tell the queue of positions that moved without work."""
        self._since_reminder = 0
        late = [reader for reader in self._free() if reader.skipped]
        await asyncio.gather(*(self._send(reader, [], reader.position) for reader in late))

    async def _pass_bad(self, end: Position, bad: int, blank: int) -> list[Reject]:
        """Move on past lines that belong to no scene."""
        if (await self._send(self._rejected, [], end)).outcome == "published":
            self._scenes.metrics.lines.labels("rejected").inc(bad)
            self._scenes.metrics.lines.labels("blank").inc(blank)
        return []

    async def _offer(
        self, reader: Reader, work: list[tuple[Line, Work]], end: Position
    ) -> list[Reject]:
        """Publish one scene's part of a chunk; returns its duplicates."""
        start, metrics = reader.position, self._scenes.metrics
        work = [(line, item) for line, item in work if line.offset >= start.offset]
        if start.reread or start.recover:
            work = await self._unfinished(reader, work)
        try:
            reply = await self._send(reader, [item.new for _, item in work], end)
        except MemoryFull:
            # The call itself takes memory there, as long as it is refused: without this, a server
            # that is empty but for it would be full for ever.
            self._portion = min(self._portion, sum(item.weight for _, item in work)) // 2
            return []
        self._portion = min(_BATCH_BYTES, max(1, self._portion) * 2)
        self._scenes.set_blocked(reader.name, reply.outcome == "full")
        if reply.outcome == "moved" and not self._shared:
            self._shared = True
            log.info("file.shared", file=self.key, hint="another dispatcher reads it too")
        if reply.published:
            metrics.lines.labels("dispatched").inc(reply.published)
            metrics.dispatched.labels(reader.name).inc(reply.published)
        again = [work[index] for index in reply.duplicates]
        new = [(line, item) for line, item in again if line.offset >= start.reread]
        self._seen += len(again) - len(new)
        metrics.lines.labels("duplicate").inc(len(new))
        problem = (("task_id", "duplicate task_id"),)
        return [Reject(self.key, line, problem, item.task.task_id) for line, item in new]

    async def _send(self, reader: Reader, tasks: Sequence[NewTask], end: Position) -> PublishReply:
        reply = await reader.publish(tasks, end, self._scenes.settings.max_backlog)
        if reader.forgotten:
            self._forgotten(reader)
        return reply

    async def _unfinished(
        self, reader: Reader, work: list[tuple[Line, Work]]
    ) -> list[tuple[Line, Work]]:
        """Leave out what the queue has forgotten and the store holds the end of."""
        known = await reader.known([item.task.task_id for _, item in work])

        def kept() -> list[tuple[Line, Work]]:
            # A task in the ledger is not run again, and asking for it is far cheaper.
            return [
                (line, item)
                for line, item in work
                if item.task.task_id in known or item.task not in self._finished
            ]

        left = await asyncio.to_thread(kept)
        self._before += len(work) - len(left)
        return left

    def _forgotten(self, reader: Reader) -> None:
        """The queue does not know where we were: read the file again."""
        log.error(
            "queue.forgotten", scene=reader.name, file=self.key,
            hint="the file is read again; tasks whose results are in the store are not run again",
        )  # fmt: skip
        reader.recover(self._size)

    # -- the file as a whole -----------------------------------------------------------------

    def _begin_again(self, place: Position, size: int) -> None:
        log.warning("file.rewritten", file=self.key, offset=place.offset, line=place.line)
        for reader in self._readers:
            if (reader.position.offset, reader.position.anchor) == (place.offset, place.anchor):
                reader.restart(size)

    def _unreadable(self, error: OSError) -> None:
        what = f"cannot read {self._path}: {error.strerror or error}"
        if self._once:
            raise ConfigurationError(what) from None
        if what != self._trouble:
            missing = isinstance(error, FileNotFoundError)
            (log.info if missing else log.error)("file.waiting", file=self.key, error=what)
            self._trouble = what

    def _at_end(self) -> None:
        """Everything the free scenes could have has been published."""
        end = self._rejected.position.offset  # a reader that is never held up
        self.done = all(reader.position.offset == end for reader in self._readers)
        if self._seen:
            log.info("file.reread", file=self.key, tasks_known_already=self._seen)
            self._seen = 0
        if self._still[0] != self._size:
            self._still = (self._size, time.monotonic())
        if self._before:
            log.info("file.finished_before", file=self.key, tasks=self._before)
            self._before = 0
        still = time.monotonic() - self._still[1]
        if self.done and still > _SETTLED:
            for reader in self._readers:
                reader.finish_reread()
        if end < self._size and still > _UNENDED and self._mentioned != end:
            self._mentioned = end
            log.warning(
                "file.unended", file=self.key, line=self._rejected.position.line + 1,
                hint="the last line has no newline yet; it is taken when it has",
            )  # fmt: skip
