"""One scene's queue: publish, take, renew, commit, and what keeps it healthy.

Workers and reviewers use the same protocol over different streams: take → renew → commit. The
token of a lease is (consumer, entry, delivery count); whoever no longer holds it changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from common.queue.connection import BLOCK_MS, Server
from common.queue.keys import LANES, REVIEWERS, WORKERS, Keys
from common.task import Assignment

Stage = Literal["work", "review"]
_GROUP: dict[Stage, str] = {"work": WORKERS, "review": REVIEWERS}


@dataclass(frozen=True)
class Lease:
    """Work that is ours as long as we renew it."""

    scene: str
    stage: Stage
    stream: int
    """1-based: lane for work; always 1 for reviews."""
    entry: str
    deliveries: int
    consumer: str
    task_id: str
    unit: str
    payload: bytes

    @property
    def attempt_id(self) -> str:
        """Unique to this lease: two owners of the same work never write the same file."""
        # Entries of two lanes may share an id: both were added in the same millisecond.
        owner = hashlib.sha256(f"{self.consumer}/{self.stream}/{self.entry}".encode()).hexdigest()[
            :8
        ]
        return f"{self.unit}-{self.entry}-d{self.deliveries}-{owner}"


@dataclass(frozen=True)
class PublishReply:
    """What became of a batch."""

    outcome: Literal["published", "moved", "full"]
    published: int = 0
    duplicates: tuple[int, ...] = ()
    """Indexes into the batch."""
    position: str = ""
    """Where the file's position really is, when it was moved by somebody else."""


@dataclass(frozen=True)
class Reclaimed:
    leases: list[Lease]
    buried: int


@dataclass(frozen=True)
class Counts:
    """A scene at a glance. Counters are exact: each changes in the call it counts."""

    waiting: int
    running: int
    delayed: int
    reviewing: int
    counters: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.counters.get(name, 0)

    @property
    def unaccounted(self) -> int:
        """Units of work that are nowhere; anything but 0 is a bug."""
        ended = self["committed"] + self["dead_work"]
        return self["units"] - ended - self.waiting - self.running - self.delayed

    @property
    def open_tasks(self) -> int:
        ended = sum(self[f"tasks_{s}"] for s in ("accepted", "rejected", "human", "dead"))
        return self["tasks"] - ended


class SceneQueue:
    """The stream protocol for one scene, seen by one consumer."""

    def __init__(
        self,
        server: Server,
        scene: str,
        *,
        consumer: str = "",
        stage: Stage = "work",
        ledger_ttl: float = 7 * 86_400.0,
    ) -> None:
        self.server = server
        self.scene = scene
        self.keys = Keys(scene)
        self.consumer = consumer
        self.stage: Stage = stage
        self.group = _GROUP[stage]
        self.ttl_ms = int(ledger_ttl * 1000)
        self.streams = self.keys.lanes if stage == "work" else (self.keys.events,)
        self._takes = 0
        self.seen = ["0-0"] * len(self.streams)
        """The youngest entry of each stream at the last `take`."""

    # -- the dispatcher's side ---------------------------------------------------------------

    async def publish(
        self,
        tasks: Sequence[Sequence[Assignment]],
        *,
        file: str = "-",
        expected: str = "-",
        new: str = "-",
        max_backlog: int = 1 << 62,
    ) -> PublishReply:
        """Queue tasks (each the assignments of its samples) and move the file's position.

        All or nothing, and harmless to repeat: it happens only if the position is ``expected``.
        """
        argv: list[Any] = [file, expected, new, max_backlog]
        starts = {}
        for index, samples in enumerate(tasks):
            starts[len(argv) - 4] = index
            argv += [samples[0].task.task_id, LANES.index(samples[0].task.lane) + 1, len(samples)]
            argv += [assignment.encode() for assignment in samples]
        reply = await self.server.fcall("publish", (self.keys.prefix, *self.keys.lanes), argv)
        if reply[0] == -1:
            return PublishReply("moved", position=reply[1].decode())
        if reply[0] == -2:
            return PublishReply("full")
        duplicates = tuple(starts[offset] for offset in reply[2:])
        return PublishReply("published", published=reply[1], duplicates=duplicates)

    async def position(self, file: str) -> str:
        """Return how far ``file`` has been published for this scene; '' when never."""
        got = await self.server.persist(lambda: self.server.client.hget(self.keys.cursor, file))
        return got.decode() if got else ""

    # -- take --------------------------------------------------------------------------------

    async def take(self, count: int) -> list[Lease]:
        """Lease up to ``count`` entries; [] when there is nothing to do now."""
        # Highest first; every eighth time lowest first, so that low priority never starves.
        self._takes += 1
        order = list(range(len(self.streams)))
        if self._takes % 8 == 0:
            order.reverse()
        keys = [self.keys.prefix, *(self.streams[i] for i in order)]
        *rows, last = await self.server.fcall("take", keys, (self.group, self.consumer, count))
        for i, entry in zip(order, last, strict=True):
            self.seen[i] = entry.decode()
        return [self._lease(row, stream=order[row[0] - 1] + 1) for row in rows]

    async def reclaim(
        self, count: int, *, lease: float, max_deliveries: int, holding: Iterable[Lease] = ()
    ) -> Reclaimed:
        """Take over what silent owners (``lease`` seconds) held; bury what keeps killing them.

        ``holding``: what the caller works on itself; never taken over from itself.
        """
        mine: list[Any] = []
        for held in holding:
            mine += [held.stream, held.entry]
        buried, *rows = await self.server.fcall(
            "reclaim",
            (self.keys.prefix, *self.streams),
            (
                self.group, self.consumer, int(lease * 1000), max_deliveries, count,
                self.ttl_ms, self.stage, *mine,
            ),
        )  # fmt: skip
        return Reclaimed([self._lease(row, stream=row[0]) for row in rows], buried)

    async def promote(self, limit: int = 256) -> int:
        """Move delayed work that is due into its stream."""
        keys = (self.keys.prefix, *self.keys.lanes)
        return int(await self.server.fcall("promote", keys, (limit,)))

    async def gc(self, idle: float = 3600.0) -> int:
        """Forget consumers silent for ``idle`` seconds that own nothing."""
        keys = (self.keys.prefix, *self.streams)
        return int(await self.server.fcall("gc", keys, (self.group, int(idle * 1000))))

    def _lease(self, row: list[Any], *, stream: int) -> Lease:
        _, entry, deliveries, task_id, unit, payload = row
        return Lease(
            scene=self.scene, stage=self.stage, stream=stream, entry=entry.decode(),
            deliveries=deliveries, consumer=self.consumer, task_id=task_id.decode(),
            unit=unit.decode(), payload=payload,
        )  # fmt: skip

    # -- ending leases -----------------------------------------------------------------------

    async def release(self, leases: Iterable[Lease]) -> int:
        """Hand leases back at once, uncounted; returns how many were still ours."""
        argv: list[Any] = [self.group, self.consumer]
        for lease in leases:
            argv += [lease.stream, lease.entry, lease.deliveries]
        if len(argv) == 2:
            return 0
        return sum(await self.server.fcall("release", (self.keys.prefix, *self.streams), argv))

    # -- people ------------------------------------------------------------------------------

    async def counts(self) -> Counts:
        """Read the scene's state in one round trip."""
        client, keys = self.server.client, self.keys

        async def ask() -> list[Any]:
            async with client.pipeline(transaction=True) as pipe:
                for stream in (*keys.lanes, keys.events):
                    pipe.xlen(stream)
                    pipe.exists(stream)
                pipe.zcard(keys.delayed)
                pipe.hgetall(keys.stats)
                for lane in keys.lanes:
                    pipe.xpending(lane, WORKERS)
                return list(await pipe.execute(raise_on_error=False))

        row = await self.server.persist(ask)
        length = [row[i] for i in (0, 2, 4, 6)]
        # XPENDING on a stream nobody has touched yet is an error: nothing is pending there.
        running = sum(p["pending"] for p in row[10:13] if isinstance(p, dict))
        return Counts(
            waiting=sum(length[:3]) - running,
            running=running,
            delayed=row[8],
            reviewing=length[3],
            counters={k.decode(): int(v) for k, v in row[9].items()},
        )

    async def dead_letters(self, limit: int = 1000) -> list[dict[str, str]]:
        """Return dead letters, oldest first, as field → text, with `entry` and `at` (ms)."""
        rows = await self.server.persist(
            lambda: self.server.client.xrange(self.keys.dead, count=limit)
        )
        return [
            {
                "entry": entry.decode(),
                "at": entry.decode().split("-")[0],
                **{k.decode(): v.decode(errors="replace") for k, v in fields.items()},
            }
            for entry, fields in rows
        ]

    async def revive(self, entries: Sequence[str]) -> int:
        """Run dead letters again, with fresh retry budgets."""
        keys = (self.keys.prefix, self.keys.events, *self.keys.lanes)
        return int(await self.server.fcall("revive", keys, entries))


async def wait_any(queues: Sequence[SceneQueue], block_ms: int = BLOCK_MS) -> None:
    """Return when an entry younger than the last `take` arrives, or after ``block_ms``."""
    streams: dict[Any, Any] = {}
    for queue in queues:
        streams |= zip(queue.streams, queue.seen, strict=False)
    server = queues[0].server
    await server.persist(lambda: server.client.xread(streams, count=1, block=block_ms))
