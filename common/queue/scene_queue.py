"""One scene's queue: publish, take, renew, commit, and what keeps it healthy.

Workers and reviewers use the same protocol over different streams: take → renew → commit. The
token of a lease is (consumer, entry, delivery count); whoever no longer holds it changes nothing.
What people do to a scene (pause, cancel, dead letters) is in `common.queue.control`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from common.queue.connection import BLOCK_MS, Server
from common.queue.keys import LANES, REVIEWERS, WORKERS, Keys
from common.task import Assignment

Stage = Literal["work", "review"]
ENDS = ("accepted", "rejected", "human", "cancelled", "dead")
"""How a task can end."""
_TURNS = ((0, 1, 2), (0, 1, 2), (1, 0, 2), (0, 1, 2), (0, 1, 2), (1, 0, 2), (0, 1, 2), (2, 1, 0))
"""Lanes in the order in which successive takes are served. Where all three always have work,
urgent work gets five eighths, plain two and low one: no lane starves."""
_GROUP: dict[Stage, str] = {"work": WORKERS, "review": REVIEWERS}


@dataclass(slots=True, eq=False)
class Lease:
    """Work that is ours as long as we renew it. Never changed; compared by identity.

    Not frozen: setting ten fields the frozen way is a tenth of what a task costs a worker here.
    """

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
    attempt_id: str
    """Unique to this lease: two owners of the same work never write the same file."""


class NewTask(NamedTuple):
    """A task as it goes into the queue: one payload for each of its samples."""

    task_id: str
    lane: int
    """Priority as `LANES` counts it, from 1."""
    payloads: Sequence[bytes]
    """`Assignment`s as JSON."""

    @classmethod
    def of(cls, samples: Sequence[Assignment]) -> NewTask:
        task = samples[0].task
        lane = LANES.index(task.lane) + 1
        return cls(task.task_id, lane, [assignment.encode() for assignment in samples])


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
    undecided: int = 0
    """Units that wait for people, whose time is not over; the counter `with_people` has all."""
    paused: str = ""
    """Who paused it, and why; empty when it is not."""
    counters: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return self.counters.get(name, 0)

    @property
    def unaccounted(self) -> int:
        """Units of work that are nowhere; anything but 0 is a bug."""
        ended = self["committed"] + self["dead_work"] + self["cancelled"]
        return self["units"] - ended - self.waiting - self.running - self.delayed

    @property
    def open_tasks(self) -> int:
        ended = sum(self[f"tasks_{state}"] for state in ENDS)
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
        # An entry's id is in the attempt's; owner, scene and lane tell the rest apart (entries of
        # two streams may share an id: both were added in the same millisecond).
        self._owner = [
            hashlib.sha256(f"{scene}/{consumer}/{n}".encode()).hexdigest()[:8]
            for n in range(len(self.streams) + 1)
        ]
        self._handed = 0
        self._unsure = False
        """A reply of `take` got lost: entries may be ours without our knowing."""
        self.seen = ["0-0"] * len(self.streams)
        """The youngest entry of each stream at the last `take`."""

    # -- the dispatcher's side ---------------------------------------------------------------

    async def publish(
        self,
        tasks: Sequence[NewTask],
        *,
        file: str = "-",
        expected: str = "-",
        new: str = "-",
        max_backlog: int = 1 << 62,
        wait_for_memory: bool = True,
    ) -> PublishReply:
        """Queue tasks and move the file's position.

        All or nothing, and harmless to repeat: it happens only if the position is ``expected``.
        Without ``wait_for_memory`` raises `MemoryFull` where the server has no room for them now.
        """
        argv: list[Any] = [file, expected, new, max_backlog]
        for task in tasks:
            argv += (task.task_id, task.lane, len(task.payloads))
            argv += task.payloads
        reply = await self.server.fcall(
            "publish", (self.keys.prefix, *self.keys.lanes), argv, wait_for_memory=wait_for_memory
        )
        if reply[0] == -1:
            return PublishReply("moved", position=reply[1].decode())
        if reply[0] == -2:
            return PublishReply("full")
        known, at = set(reply[2:]), 0
        duplicates = []
        for index, task in enumerate(tasks if known else ()):
            if at in known:
                duplicates.append(index)
            at += 3 + len(task.payloads)
        return PublishReply("published", published=reply[1], duplicates=tuple(duplicates))

    async def position(self, file: str) -> str:
        """Return how far ``file`` has been published for this scene; '' when never."""
        got = await self.server.persist(lambda: self.server.client.hget(self.keys.cursor, file))
        return got.decode() if got else ""

    # -- take --------------------------------------------------------------------------------

    async def take(self, count: int) -> list[Lease]:
        """Lease up to ``count`` entries; [] when there is nothing to do now."""
        order = _TURNS[self._takes % len(_TURNS)] if len(self.streams) > 1 else (0,)
        self._takes += 1
        keys = [self.keys.prefix, *(self.streams[i] for i in order)]
        before = self.server.interruptions
        *rows, last = await self.server.fcall(
            "take", keys, (self.group, self.consumer, count, self.ttl_ms, self.stage)
        )
        self._unsure = self._unsure or self.server.interruptions != before
        if len(rows) < count:
            for i, entry in zip(order, last, strict=True):
                self.seen[i] = entry.decode()
        return [self._lease(row, order[row[0] - 1] + 1) for row in rows]

    async def reclaim(
        self,
        count: int,
        *,
        lease: float,
        max_deliveries: int,
        holding: Iterable[Lease] = (),
        heard: int = 0,
    ) -> Reclaimed:
        """Take over what silent owners (``lease`` seconds) held; bury what keeps killing them.

        ``holding``: what the caller works on itself; never taken over from itself. ``heard``: the
        server's time when we last heard it (`Heartbeat.heard`): a call that was held up for half
        a lease since takes nothing.
        """
        mine: list[Any] = []
        for held in holding:
            mine += [held.stream, held.entry]
        before = self.server.interruptions
        buried, unknown, left, *rows = await self.server.fcall(
            "reclaim",
            (self.keys.prefix, *self.streams),
            (
                self.group, self.consumer, int(lease * 1000), max_deliveries, count,
                self.ttl_ms, self.stage, int(self._unsure), heard, *mine,
            ),
        )  # fmt: skip
        if self.server.interruptions != before:
            self._unsure = True
        elif unknown and not left:
            # An outage loses the replies under way, and then it is over: these were all.
            self._unsure = False
        return Reclaimed([self._lease(row, row[0]) for row in rows], buried)

    async def promote(self, limit: int = 256) -> int:
        """Move delayed work that is due into its stream."""
        keys = (self.keys.prefix, *self.keys.lanes)
        return int(await self.server.fcall("promote", keys, (limit, self.ttl_ms)))

    async def gc(self, idle: float = 3600.0) -> int:
        """Forget consumers silent for ``idle`` seconds that own nothing."""
        keys = (self.keys.prefix, *self.streams)
        return int(await self.server.fcall("gc", keys, (self.group, int(idle * 1000))))

    def _lease(self, row: list[Any], stream: int) -> Lease:
        _, raw, deliveries, task_id, raw_unit, payload = row
        entry, unit = raw.decode(), raw_unit.decode()
        # What we hand back and take again is another attempt, though nobody counted a delivery.
        self._handed += 1
        return Lease(
            self.scene, self.stage, stream, entry, deliveries, self.consumer, task_id.decode(),
            unit, payload, f"{unit}-{entry}-d{deliveries}-{self._owner[stream]}{self._handed:x}",
        )  # fmt: skip

    # -- ending leases -----------------------------------------------------------------------

    async def release(self, leases: Iterable[Lease]) -> int:
        """Hand leases back at once, uncounted; returns how many were still ours."""
        held = list(leases)
        if not held:
            return 0
        argv: list[Any] = [self.group, self.consumer, self.stage, self.ttl_ms]
        for lease in held:
            argv += [lease.stream, lease.entry, lease.deliveries]
        return sum(await self.server.fcall("release", (self.keys.prefix, *self.streams), argv))

    # -- looking -----------------------------------------------------------------------------

    async def counts(self) -> Counts:
        """Read the scene's state, all of it at one moment."""
        keys = (self.keys.prefix, *self.keys.lanes)
        row = await self.server.fcall("counts", keys, ())
        lengths, (reviewing, delayed), running = row[:3], row[3:5], sum(row[5:8])
        stats, control = (_pairs(flat) for flat in row[9:])
        paused = control.get("paused", "")
        return Counts(
            waiting=sum(lengths) - running,
            running=running,
            delayed=delayed,
            reviewing=reviewing,
            undecided=row[8],
            paused=f"{paused}: {control['why']}" if control.get("why") else paused,
            counters={name: int(value) for name, value in stats.items()},
        )


def _pairs(flat: list[bytes]) -> dict[str, str]:
    text = [item.decode(errors="replace") for item in flat]
    return dict(zip(text[::2], text[1::2], strict=True))


async def wait_any(queues: Sequence[SceneQueue], block_ms: int = BLOCK_MS) -> None:
    """Return when an entry younger than the last `take` arrives, or after ``block_ms``."""
    streams: dict[Any, Any] = {}
    for queue in queues:
        streams |= zip(queue.streams, queue.seen, strict=False)
    server = queues[0].server
    await server.persist(lambda: server.client.xread(streams, count=1, block=block_ms))
