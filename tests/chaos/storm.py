"""A fleet of real processes under a plan of faults that a seed makes: `Storm.blow`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer
from common.queue.keys import REVIEWERS, WORKERS
from common.queue.scene_queue import Counts, SceneQueue
from tests.chaos.process import Victim
from tests.chaos.proxy import Proxy
from tests.chaos.scene import line

SCENES = ("code", "web")
LEASE = 3.0
"""Seconds. On a busy machine of two cores a healthy heartbeat is now and then a second late."""
_SETTLE = 0.2
"""Seconds for what a stopped process had already sent to be answered."""

Kind = Literal["kill", "freeze", "cut", "stall", "restart"]


def chosen_seed() -> int:
    """FLEET_CHAOS_SEED, or a fixed one; printed, so that a run can be had again."""
    number = int(os.environ.get("FLEET_CHAOS_SEED") or 20)
    print(f"FLEET_CHAOS_SEED={number}")
    return number


@dataclass(frozen=True)
class Size:
    tasks: int
    workers: int
    reviewers: int
    seconds: float
    """Of faults."""
    restarts: int
    """Of the server."""
    every: float
    """Seconds between two faults, on average."""
    concurrency: int = 2
    """Episodes at once in each worker: few, so that all of them are busy all the time."""


@dataclass(frozen=True)
class Fault:
    at: float
    kind: Kind
    victim: str
    lasts: float
    """Seconds; longer than a lease for all but kills."""


def plan(size: Size, seed: int) -> list[Fault]:
    """The faults of one storm, in order; the same seed makes the same plan."""
    rng = random.Random(seed)
    names = [f"worker{n}" for n in range(size.workers)]
    # Mostly workers: they hold most of the work, and are most of any fleet.
    victims = names * 3 + [f"reviewer{n}" for n in range(size.reviewers)] * 2 + ["dispatcher"] * 2
    faults = [
        Fault(size.seconds * (n + 1) / (size.restarts + 1), "restart", "server", 0.5)
        for n in range(size.restarts)
    ]
    at = 0.0
    while (at := at + rng.uniform(0.5, 1.5) * size.every) < size.seconds:
        kind: Kind = rng.choice(("kill", "kill", "freeze", "freeze", "cut", "stall", "stall"))
        lasts = 0.0 if kind == "kill" else rng.uniform(1.4, 2.0) * LEASE
        faults.append(Fault(at, kind, rng.choice(victims), lasts))
    return sorted(faults, key=lambda fault: fault.at)


@dataclass
class Storm:
    """One server, one file, and the processes between them."""

    folder: Path
    size: Size
    seed: int
    in_flight: int = 0
    """Leases held by the victims of all faults at that moment: what may run again."""
    hit: list[tuple[Fault, int]] = field(default_factory=list)
    """Each fault with what was in flight on its victim."""
    missed: int = 0
    """Faults whose victim was already down."""

    def __post_init__(self) -> None:
        self.executed = self.folder / "executed"
        self.output = self.folder / "output"
        self.tasks = self.folder / "tasks.jsonl"
        self.units = 0
        self.valkey = EmbeddedServer(self.folder / "valkey")
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self.valkey.start()
        self._stack.callback(self.valkey.stop)
        self.server = Server(self.valkey.url, patience=30)
        self._stack.push_async_callback(self.server.close)
        self.queues = {scene: SceneQueue(self.server, scene) for scene in SCENES}
        self.tasks.touch()
        self.victims: dict[str, Victim] = {}
        scenes = [str(self.executed), *SCENES, "--concurrency", str(self.size.concurrency)]
        for n in range(self.size.workers):
            await self._add(f"worker{n}", ["tests.chaos.worker", *scenes])
        for n in range(self.size.reviewers):
            await self._add(f"reviewer{n}", ["reviewer", *SCENES])
        await self._add("dispatcher", ["dispatcher", str(self.tasks)])
        return self

    async def _add(self, name: str, argv: list[str]) -> None:
        proxy = await self._stack.enter_async_context(Proxy(self.valkey.url))
        self.victims[name] = Victim(
            name, argv, self.folder, proxy,
            FLEET_OUTPUT=self.output, FLEET_LEASE=LEASE, FLEET_RETRY_DELAY=0.2,
            # Bad luck may kill the same task's worker many times; that is not its fault here.
            FLEET_MAX_DELIVERIES=100,
        )  # fmt: skip

    async def __aexit__(self, *exc: object) -> None:
        for victim in self.victims.values():
            victim.proxy.heal()
        await asyncio.gather(*(asyncio.to_thread(v.end) for v in self.victims.values()))
        await self._stack.aclose()

    # -- the faults --------------------------------------------------------------------------

    async def blow(self) -> None:
        """Let the file grow and the faults happen, each at its time; return when all is healed."""
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write(began))
            for fault in plan(self.size, self.seed):
                await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
                if fault.kind == "restart":
                    await self._restart(fault)
                    continue
                victim = self.victims[fault.victim]
                if victim.busy:
                    self.missed += 1
                    continue
                victim.busy = True
                group.create_task(self._strike(fault, victim))

    async def _write(self, began: float) -> None:
        """Append tasks evenly until two seconds before the end, now and then half a line."""
        rng = random.Random(self.seed + 1)
        span = max(1.0, self.size.seconds - 2.0)
        n = 0
        with self.tasks.open("ab", buffering=0) as file:
            while n < self.size.tasks:
                share = min(1.0, (time.monotonic() - began) / span)
                while n < int(self.size.tasks * share):
                    row = line(
                        f"t{n:05d}", SCENES[n % 2], rng.uniform(0.05, 0.5),
                        priority=rng.choice((9, 5, 5, 1)), samples=rng.choice((1, 1, 2, 3)),
                    )  # fmt: skip
                    self.units += int(str(row["samples"]))
                    data = json.dumps(row).encode() + b"\n"
                    file.write(data[:40])
                    if rng.random() < 0.02:
                        await asyncio.sleep(0.3)  # a reader sees a torn line meanwhile
                    file.write(data[40:])
                    n += 1
                await asyncio.sleep(0.05)

    async def _strike(self, fault: Fault, victim: Victim) -> None:
        try:
            match fault.kind:
                case "kill":
                    victim.stop()  # so that what it holds cannot change while we look
                    await self._note(fault, victim)
                    victim.kill()
                    victim.start_again()
                case "freeze":
                    victim.stop()
                    await self._note(fault, victim)
                    await asyncio.sleep(fault.lasts)
                    victim.go_on()
                case "cut" | "stall":
                    (victim.proxy.cut if fault.kind == "cut" else victim.proxy.stall)()
                    await self._note(fault, victim)
                    await asyncio.sleep(fault.lasts)
                    victim.proxy.heal()
        finally:
            victim.busy = False

    async def _restart(self, fault: Fault) -> None:
        """Kill the server; what it holds comes from its append-only file."""
        await asyncio.to_thread(self.valkey.kill)
        await asyncio.sleep(fault.lasts)
        await asyncio.to_thread(self.valkey.start)
        await self._note(fault, None)

    async def _note(self, fault: Fault, victim: Victim | None) -> None:
        """Count what the victim (None: everybody) has leased at this moment."""
        await asyncio.sleep(_SETTLE)
        held = 0
        for queue in self.queues.values():
            for stream in queue.keys.lanes:
                for row in await self._consumers(stream, WORKERS):
                    if victim is None or row["name"].decode() == victim.consumer:
                        held += row["pending"]
        self.in_flight += held
        self.hit.append((fault, held))

    async def _consumers(self, stream: str, group: str) -> list[dict[str, Any]]:
        client = self.server.client
        if not await self.server.persist(lambda: client.exists(stream)):
            return []
        groups = await self.server.persist(lambda: client.xinfo_groups(stream))
        if not any(row["name"].decode() == group for row in groups):
            return []
        return list(await self.server.persist(lambda: client.xinfo_consumers(stream, group)))

    # -- the end -----------------------------------------------------------------------------

    async def counts(self) -> list[Counts]:
        return [await queue.counts() for queue in self.queues.values()]

    async def calm(self, *, within: float) -> None:
        """Return once every task has ended; fail saying what is left after ``within`` seconds."""
        deadline = time.monotonic() + within
        while True:
            counts = await self.counts()
            if total(counts, "tasks") == self.size.tasks and not sum(c.open_tasks for c in counts):
                return
            for victim in self.victims.values():
                assert victim.process.poll() is None, f"{victim.name} ended by itself: {victim.log}"
            assert time.monotonic() < deadline, (counts, str(self.folder))
            await asyncio.sleep(0.2)

    async def decisions(self) -> list[dict[str, Any]]:
        """What reviewers settled: one row per committed attempt."""
        rows = []
        for queue in self.queues.values():
            key = queue.keys.prefix + "decisions"
            for _, fields in await self.server.client.xrange(key):
                rows.append(
                    {
                        "task_id": fields[b"id"].decode(),
                        "unit": fields[b"u"].decode(),
                        **json.loads(fields[b"p"]),
                    }
                )
        return rows

    async def left_pending(self) -> int:
        """Entries that any consumer of any group still holds."""
        held = 0
        for queue in self.queues.values():
            for stream in queue.keys.lanes:
                held += sum(row["pending"] for row in await self._consumers(stream, WORKERS))
            held += sum(r["pending"] for r in await self._consumers(queue.keys.events, REVIEWERS))
        return held


def total(counts: Sequence[Counts], name: str) -> int:
    return sum(c[name] for c in counts)
