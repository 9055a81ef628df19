"""Consumers past their lease: frozen ones commit nothing late, healthy ones lose nothing."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from common.failures import LeaseLost
from common.queue.committer import Committer, Dead, Done, Outcome, Retry
from common.queue.connection import Server
from common.queue.keys import Keys
from common.queue.scene_queue import Lease, SceneQueue
from tests.chaos.crew import Crew
from tests.chaos.scene import times_run
from tests.chaos.storm import chosen_seed
from tests.helpers import eventually, task, units

BATCH = 50
SHORT_LEASE = 0.02
OUTCOMES: tuple[Outcome, ...] = (Done(b"late"), Retry(3600.0, "late"), Dead("late", "late"))


async def accepted(committer: Committer, lease: Lease, outcome: Outcome) -> bool:
    try:
        await committer.commit(lease, outcome)
    except LeaseLost:
        return False
    return True


async def events(server: Server) -> Counter[tuple[str, str]]:
    """How many attempts of each unit have been committed."""
    rows = await server.client.xrange(Keys("code").events)
    return Counter((f[b"id"].decode(), f[b"u"].decode()) for _, f in rows)


async def take_over(queue: SceneQueue, count: int) -> list[Lease]:
    """Take over what somebody else let lapse, all of it."""
    leases: list[Lease] = []

    async def all_of_it() -> bool:
        got = await queue.reclaim(count, lease=SHORT_LEASE, max_deliveries=100, holding=leases)
        leases.extend(got.leases)
        return len(leases) >= count

    await eventually(all_of_it, "a lapsed lease is taken over")
    return leases


async def test_of_1000_consumers_that_wake_up_past_their_lease_none_commits(
    either: Server,
) -> None:
    rng = random.Random(chosen_seed())
    late = 0
    for cycle in range(0, 1000, BATCH):
        frozen = SceneQueue(either, "code", consumer=f"frozen{cycle}")
        owner = SceneQueue(either, "code", consumer=f"owner{cycle}")
        await owner.publish([units(task(f"t{cycle + n}")) for n in range(BATCH)])
        old = await frozen.take(BATCH)
        new = await take_over(owner, BATCH)
        before = await owner.counts()

        # It wakes up before the new owner ends, and again after.
        for _ in range(2):
            committer = Committer(frozen)
            answers = await asyncio.gather(
                *(accepted(committer, lease, rng.choice(OUTCOMES)) for lease in old)
            )
            late += sum(answers)
            assert await frozen.release(old) == 0
            if new:
                committer = Committer(owner)
                done = [accepted(committer, lease, Done(b"in time")) for lease in new]
                assert all(await asyncio.gather(*done))
                new = []
        counts = await owner.counts()
        assert counts["lost"] - before["lost"] == 2 * BATCH
        assert counts["committed"] - before["committed"] == BATCH
    assert late == 0
    counts = await SceneQueue(either, "code").counts()
    assert (counts["lost"], counts["committed"], counts.unaccounted) == (2000, 1000, 0)
    rows = await either.client.xrange(Keys("code").events)
    assert {fields[b"p"] for _, fields in rows} == {b"in time"}


async def test_of_two_that_race_for_the_end_of_a_lease_exactly_one_commits(server: Server) -> None:
    rng = random.Random(chosen_seed())
    won: Counter[str] = Counter()

    async def slow(queue: SceneQueue, leases: list[Lease]) -> None:
        committer = Committer(queue)
        for lease in leases:
            await asyncio.sleep(rng.random() * 0.004)
            won["slow"] += await accepted(committer, lease, Done(b"slow"))

    async def eager(queue: SceneQueue) -> None:
        committer = Committer(queue)
        while (await queue.counts()).running:
            got = await queue.reclaim(3, lease=SHORT_LEASE, max_deliveries=100)
            for lease in got.leases:
                won["eager"] += await accepted(committer, lease, Done(b"eager"))

    async with asyncio.timeout(60):
        for cycle in range(0, 600, BATCH):
            a = SceneQueue(server, "code", consumer=f"slow{cycle}")
            b = SceneQueue(server, "code", consumer=f"eager{cycle}")
            await a.publish([units(task(f"t{cycle + n}")) for n in range(BATCH)])
            leases = await a.take(BATCH)
            async with asyncio.TaskGroup() as group:
                group.create_task(slow(a, leases))
                group.create_task(eager(b))
    assert won.total() == 600
    assert min(won.values()) > 0, won
    assert set((await events(server)).values()) == {1}


async def freeze_and_thaw(folder: Path, cycles: int) -> None:
    """Two real workers; the one that has work is stopped until the other has all of it."""
    async with Crew(folder, workers=2, lease=1.0, concurrency=4) as crew:
        rng = random.Random(chosen_seed())
        given = frozen = 0
        for _ in range(cycles):
            for _ in range(8):
                await crew.give(f"t{given:04d}", rng.uniform(0.2, 0.6))
                given += 1
            victim = rng.choice(crew.workers)
            await eventually(lambda v=victim: holds(crew, v.consumer), "it has work")
            await asyncio.sleep(rng.random() * 0.3)  # frozen anywhere in its work
            victim.stop()
            frozen += await pending(crew, victim.consumer)
            await eventually(
                lambda v=victim: nothing(crew, v.consumer), "its work is taken over", within=30
            )
            victim.go_on()
        await crew.committed(given)
        counts = await crew.queue.counts()
        print(
            f"freeze: {cycles} cycles, {frozen} leases frozen, executed again "
            f"{sum(n - 1 for n in times_run(crew.executed).values())}, "
            f"late results refused {counts['lost']}"
        )
        assert set((await events(crew.server)).values()) == {1}
        assert counts["reclaimed"] > 0


async def pending(crew: Crew, consumer: str) -> int:
    held = 0
    for lane in crew.queue.keys.lanes:
        if await crew.server.client.exists(lane):
            rows = await crew.server.client.xinfo_consumers(lane, "workers")
            held += sum(r["pending"] for r in rows if r["name"].decode() == consumer)
    return held


async def holds(crew: Crew, consumer: str) -> bool:
    return await pending(crew, consumer) > 0


async def nothing(crew: Crew, consumer: str) -> bool:
    return await pending(crew, consumer) == 0


async def test_a_worker_stopped_past_its_lease_commits_nothing_late(tmp_path: Path) -> None:
    await freeze_and_thaw(tmp_path, 4)


@pytest.mark.chaos
async def test_60_stops_of_real_workers_past_their_lease(tmp_path: Path) -> None:
    await freeze_and_thaw(tmp_path, 60)


async def test_a_job_of_ten_leases_runs_once_even_when_it_blocks_its_event_loop(
    tmp_path: Path,
) -> None:
    async with Crew(tmp_path, workers=3, lease=1.0) as crew:  # the third waits to take over
        await crew.give("long", 10.0)
        await crew.give("blocking", 10.0, block=True)
        await crew.committed(2)
        assert times_run(crew.executed) == {("long", "r1-s0"): 1, ("blocking", "r1-s0"): 1}
        counts = await crew.queue.counts()
        assert (counts["reclaimed"], counts["lost"]) == (0, 0)


async def take_overs(folder: Path, kills: int) -> list[float]:
    """Kill the worker that has the task, again and again; return seconds until it runs again."""
    rng = random.Random(chosen_seed())
    took = []
    async with Crew(folder, workers=3, lease=2.0) as crew:
        for n in range(kills):
            task_id = f"t{n}"
            await crew.give(task_id, 1.5)
            first = await crew.begun(task_id, 1)
            await asyncio.sleep(rng.random())  # anywhere between two renewals
            victim = crew.by_pid(first.pid)
            at = time.time()
            victim.kill()
            took.append((await crew.begun(task_id, 2)).at - at)
            victim.start_again()
            await crew.committed(n + 1)
            await crew.ready()
    print(f"take-over, lease 2 s: worst {max(took):.2f} s = {max(took) / 2:.2f} leases; "
          f"mean {sum(took) / kills:.2f} s of {kills} kills")  # fmt: skip
    return took


async def test_a_killed_workers_task_runs_again_soon_after_its_lease(tmp_path: Path) -> None:
    took = await take_overs(tmp_path, 2)
    assert max(took) < 2 * 2.0  # the goal is 1.25 leases; a busy machine gets some room


@pytest.mark.chaos
async def test_20_take_overs_within_one_and_a_quarter_leases(tmp_path: Path) -> None:
    took = await take_overs(tmp_path, 20)
    assert max(took) < 1.6 * 2.0
