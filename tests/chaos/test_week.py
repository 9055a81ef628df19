"""A week in minutes: what is done leaves no trace in the server's memory.

Batches of tasks go through publish, take, retry, take-over, commit and review by consumers that are
born and die with every batch; dead letters are purged and ledgers expire after a second.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from common.queue.committer import Committer, Dead, Decision, Done, Outcome, Retry
from common.queue.connection import Server
from common.queue.control import Control, Who
from common.queue.keys import REVIEWERS, WORKERS, Keys
from common.queue.scene_queue import Counts, Lease, NewTask, SceneQueue
from tests.chaos.storm import chosen_seed
from tests.helpers import entries_of, eventually

BATCH = 500
LEDGER_TTL = 1.0
"""Seconds."""
FORGET = 0.5
"""Seconds of silence after which a consumer that owns nothing is forgotten."""
PAYLOAD = b'{"task":{"description":"' + b"x" * 200 + b'"}}'
RECORD = b'{"decision":"accepted"}'


@dataclass
class Week:
    """One scene and everybody who ever worked on it."""

    server: Server
    rng: random.Random
    born: int = 0
    memory: list[int] = field(default_factory=list)
    """Bytes the server uses after each tenth, without its capped logs."""
    consumers: int = 0
    """Most consumers that any group ever had."""

    def __post_init__(self) -> None:
        self.keys = Keys("code")
        self.control = Control(self.server, "code", ledger_ttl=LEDGER_TTL)

    def newborn(self, stage: Any) -> SceneQueue:
        self.born += 1
        return SceneQueue(
            self.server, "code", consumer=f"c{self.born}", stage=stage, ledger_ttl=LEDGER_TTL
        )

    async def pass_by(self, entries: int) -> None:
        """Put ``entries`` units of work through; nothing of them is left but the last batches."""
        dispatcher = SceneQueue(self.server, "code", ledger_ttl=LEDGER_TTL)
        tenth, done = entries // 10, 0
        while done < entries:
            lanes = [self.rng.choice((1, 2, 2, 3)) for _ in range(BATCH)]
            await dispatcher.publish(
                [NewTask(f"t{done + n}", lane, (PAYLOAD,)) for n, lane in enumerate(lanes)],
                file="week", expected=str(done or ""), new=str(done + BATCH),
            )  # fmt: skip
            await self._work()
            await self._review()
            done += BATCH
            if done % (10 * BATCH) == 0:
                await self._tidy_up()
            if done % tenth < BATCH:
                self.memory.append(await self._used())
        while (await self.counts()).open_tasks:
            await self._work()
            await self._review()
            await self._tidy_up()

    async def counts(self) -> Counts:
        return await SceneQueue(self.server, "code").counts()

    async def _work(self) -> None:
        """Two consumers: one dies with a tenth of its work in hand, the other works all off."""
        doomed, living = self.newborn("work"), self.newborn("work")
        leases = await doomed.take(BATCH // 2)
        await self._end(doomed, [x for x in leases if self.rng.random() > 0.1])
        await living.promote()
        while leases := (
            await living.take(BATCH)
            or (await living.reclaim(BATCH, lease=0.0, max_deliveries=3)).leases
        ):
            await self._end(living, leases)

    async def _end(self, queue: SceneQueue, leases: list[Lease]) -> None:
        def outcome() -> Outcome:
            luck = self.rng.random()
            if luck < 0.03:
                return Retry(0.001, "the provider is down")
            return Dead("invalid_task", "no such tool") if luck < 0.04 else Done(PAYLOAD)

        committer = Committer(queue)
        await asyncio.gather(*(committer.commit(lease, outcome()) for lease in leases))
        await committer.close()

    async def _review(self) -> None:
        queue = self.newborn("review")
        committer = Committer(queue)
        while leases := await queue.take(BATCH):
            accepted = Decision("passed", "accepted", 90, RECORD)
            await asyncio.gather(*(committer.commit(lease, accepted) for lease in leases))
        await committer.close()

    async def _tidy_up(self) -> None:
        letters = await entries_of(self.control.server, self.control.keys.dead)
        if letters:
            await self.control.purge([row["entry"] for row in letters], Who("week"))
        for stage in ("work", "review"):
            queue = SceneQueue(self.server, "code", consumer="tidy", stage=stage)  # type: ignore[arg-type]
            await queue.gc(FORGET)
        for stream, group in self._groups():
            rows = await self.server.client.xinfo_consumers(stream, group)
            self.consumers = max(self.consumers, len(rows))

    def _groups(self) -> list[tuple[str, str]]:
        return [*((lane, WORKERS) for lane in self.keys.lanes), (self.keys.events, REVIEWERS)]

    async def _used(self) -> int:
        """Bytes in use once the rows of ended tasks have expired, but for the capped logs."""
        await self._expired()
        client = self.server.client
        used = int((await client.info("memory"))["used_memory"])
        for name in ("decisions", "audit"):
            used -= int(await client.memory_usage(self.keys.prefix + name, samples=0) or 0)
        return used

    async def _expired(self) -> None:
        async def few_left() -> bool:
            return int(await self.server.client.dbsize()) < 3 * BATCH

        await eventually(few_left, "ledgers expire", within=60)

    async def nothing_is_left(self) -> None:
        counts = await self.counts()
        assert (counts.unaccounted, counts.open_tasks, counts["dead"]) == (0, 0, 0)
        client = self.server.client
        for stream, group in self._groups():
            assert await client.xlen(stream) == 0
            assert (await client.xpending(stream, group))["pending"] == 0
        assert await client.zcard(self.keys.delayed) == 0
        assert await client.xlen(self.keys.dead) == 0
        for log in ("decisions", "audit"):
            assert await client.xlen(self.keys.prefix + log) < 101_000

        async def only_the_scene() -> bool:
            rows = [key async for key in client.scan_iter(match=self.keys.ledger("*"), count=1000)]
            return not rows

        await eventually(only_the_scene, "every ledger has expired", within=30)
        assert await client.dbsize() < 20


async def live(server: Server, entries: int) -> None:
    week = Week(server, random.Random(chosen_seed()))
    began = time.monotonic()
    await week.pass_by(entries)
    await week.nothing_is_left()
    counts = await week.counts()
    mega = [round(used / 1e6, 2) for used in week.memory]
    print(
        f"week: {entries} tasks in {time.monotonic() - began:.0f} s, {week.born} consumers "
        f"(at most {week.consumers} known at once), retried {counts['retried']}, reclaimed "
        f"{counts['reclaimed']}, dead {counts['dead_work']}; MB in use after each tenth {mega}"
    )
    assert counts["retried"] > entries / 100 and counts["reclaimed"] > entries / 100
    assert week.born > entries / 500
    assert week.consumers < 500
    # Allocator and tables breathe; a leak of 10 bytes a task would show in the long form.
    assert week.memory[-1] - week.memory[0] < 2_000_000, mega


async def test_100_000_tasks_leave_no_trace(server: Server) -> None:
    await live(server, 100_000)


@pytest.mark.chaos
async def test_a_million_tasks_two_million_entries_leave_no_trace(server: Server) -> None:
    await live(server, 1_000_000)
