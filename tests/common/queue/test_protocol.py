"""The stream protocol on real servers: nothing lost, nothing committed twice."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import replace
from typing import Any

import pytest
import redis

from common.failures import LeaseLost
from common.queue.committer import Committer, Dead, Decision, Done, Retry
from common.queue.connection import Server
from common.queue.control import Control, Who
from common.queue.heartbeat import Heartbeat
from common.queue.keys import Keys
from common.queue.scene_queue import SceneQueue, wait_any
from common.task import Assignment
from tests.helpers import entries_of, eventually, task, units


def queue(server: Server, consumer: str = "a", **kwargs: object) -> SceneQueue:
    return SceneQueue(server, "code", consumer=consumer, **kwargs)  # type: ignore[arg-type]


def control(server: Server) -> Control:
    return Control(server, "code")


ME = Who("a-person@here", "because")


async def test_a_batch_and_the_file_position_go_in_together_or_not_at_all(either: Server) -> None:
    q = queue(either)
    batch = [units(task(f"t{i}")) for i in range(3)]
    first = await q.publish(batch, file="f", expected="", new="100:3:x")
    assert (first.outcome, first.published) == ("published", 3)

    again = await q.publish(batch, file="f", expected="", new="100:3:x")
    assert (again.outcome, again.position) == ("moved", "100:3:x")
    assert (await q.counts()).waiting == 3


async def test_racing_dispatchers_publish_every_line_once(either: Server) -> None:
    async def dispatcher() -> None:
        q = queue(either)
        while (at := int(await q.position("f") or 0)) < 200:
            batch = [units(task(f"t{i}")) for i in range(at, at + 10)]
            expected = str(at) if at else ""
            await q.publish(batch, file="f", expected=expected, new=str(at + 10))

    await asyncio.gather(*(dispatcher() for _ in range(4)))
    counts = await queue(either).counts()
    assert (counts.waiting, counts["tasks"], counts.unaccounted) == (200, 200, 0)


async def test_a_known_task_id_is_a_duplicate_and_a_full_scene_takes_nothing(
    either: Server,
) -> None:
    q = queue(either)
    await q.publish([units(task("known"))])
    reply = await q.publish([units(task("new", samples=2)), units(task("known"))])
    assert (reply.published, reply.duplicates) == (1, (1,))

    full = await q.publish([units(task("more"))], file="f", expected="", new="9", max_backlog=3)
    assert full.outcome == "full"
    assert await q.position("f") == ""


async def test_urgent_work_goes_first_and_low_priority_never_starves(either: Server) -> None:
    q = queue(either)
    for i in range(40):
        await q.publish([units(task(f"hi{i}", priority=9))])
    await q.publish([units(task("lo", priority=1))])
    await q.publish([units(task("mid"))])
    order = [(await q.take(1))[0].task_id for _ in range(10)]
    assert order[0] == "hi0"
    assert "lo" in order


async def test_only_the_owner_commits_and_a_repeated_commit_is_harmless(either: Server) -> None:
    a, b = queue(either, "a"), queue(either, "b")
    await a.publish([units(task())])
    [mine] = await a.take(5)
    await either.client.xclaim(a.streams[mine.stream - 1], "workers", "b", 0, [mine.entry])
    theirs = replace(mine, consumer="b", deliveries=2, attempt_id="theirs")

    with pytest.raises(LeaseLost):
        await Committer(a).commit(mine, Done(b"{}"))
    await Committer(b).commit(theirs, Done(b"{}"))
    await Committer(b).commit(theirs, Done(b"{}"))  # its reply got lost, say

    counts = await a.counts()
    assert (counts["committed"], counts["lost"], counts.reviewing) == (1, 1, 1)
    assert counts.unaccounted == 0
    assert mine.attempt_id != theirs.attempt_id


async def test_a_silent_owners_work_is_taken_over_and_poison_is_buried(either: Server) -> None:
    await queue(either).publish([units(task())])
    owners = [queue(either, f"w{i}") for i in range(4)]
    [lease] = await owners[0].take(1)
    for delivery in (2, 3):
        got = await owners[delivery - 1].reclaim(1, lease=0.0, max_deliveries=3)
        assert [x.deliveries for x in got.leases] == [delivery]
    got = await owners[3].reclaim(1, lease=0.0, max_deliveries=3)
    assert (got.leases, got.buried) == ([], 1)

    [letter] = await entries_of(control(either).server, control(either).keys.dead)
    assert (letter["reason"], letter["deliveries"], letter["id"]) == ("poison", "3", "t")
    assert "w2" in letter["error"]
    counts = await owners[0].counts()
    assert (counts.open_tasks, counts.unaccounted, counts["tasks_dead"]) == (0, 0, 1)
    with pytest.raises(LeaseLost):
        await Committer(owners[0]).commit(lease, Done(b"{}"))


async def test_work_handed_back_is_free_at_once_and_its_delivery_does_not_count(
    either: Server,
) -> None:
    a, b = queue(either, "a"), queue(either, "b")
    await a.publish([units(task(f"t{i}")) for i in range(3)])
    leases = await a.take(3)
    assert await a.release(leases) == 3
    assert await a.release(leases) == 0
    again = await b.take(3)
    assert sorted(x.task_id for x in again) == ["t0", "t1", "t2"]
    assert {x.deliveries for x in again} == {1}
    assert not {x.attempt_id for x in again} & {x.attempt_id for x in leases}


async def test_retries_wait_their_time_then_end_as_a_dead_letter_that_can_be_revived(
    either: Server,
) -> None:
    q = queue(either)
    committer = Committer(q, max_retries=2)
    await q.publish([units(task())])
    for _ in range(3):
        await eventually(lambda: _promoted(q), "the delayed task is due")
        [lease] = await q.take(1)
        await committer.commit(lease, Retry(delay=0.05, error="provider down"))
    counts = await q.counts()
    assert (counts["retried"], counts["dead"], counts.delayed, counts.unaccounted) == (2, 1, 0, 0)

    [letter] = await entries_of(control(either).server, control(either).keys.dead)
    assert (letter["reason"], letter["error"]) == ("retries_exhausted", "provider down")
    assert await control(either).revive([letter["entry"], "1-1"], ME) == 1
    [lease] = await q.take(1)
    assert Assignment.model_validate_json(lease.payload).task.task_id == "t"
    counts = await q.counts()
    assert (counts["dead"], counts.open_tasks, counts.unaccounted) == (0, 1, 0)


async def _promoted(q: SceneQueue) -> bool:
    await q.promote()
    return (await q.counts()).waiting == 1


async def test_a_review_ends_the_task_or_queues_its_next_revision(either: Server) -> None:
    q, reviews = queue(either), queue(either, "r", stage="review")
    await q.publish([units(task(samples=2))])
    for lease in await q.take(2):
        await Committer(q).commit(lease, Done(b'{"a":1}'))
    first, second = await reviews.take(5)
    settle = Committer(reviews)
    revised = Assignment(task=task(samples=2), revision=2, sample=1)
    await settle.commit(first, Decision("passed", "accepted", 90, b"{}"))
    await settle.commit(second, Decision("failed", "iterate", 20, b"{}", revised))
    assert (await q.counts()).open_tasks == 1

    [lease] = await q.take(1)
    assert lease.unit == "r2-s1"
    await Committer(q).commit(lease, Done(b"{}"))
    [third] = await reviews.take(1)
    await settle.commit(third, Decision("failed", "rejected", 20, b"{}"))
    counts = await q.counts()
    assert (counts.open_tasks, counts["tasks_accepted"], counts.unaccounted) == (0, 1, 0)
    ledger = await either.client.hgetall(q.keys.ledger("t"))
    assert (ledger[b"st"], ledger[b"score"]) == (b"accepted", b"90")
    assert await either.client.pttl(q.keys.ledger("t")) > 0


async def test_commits_that_gather_go_together_and_each_gets_its_own_answer(
    server: Server,
) -> None:
    q = queue(server)
    await q.publish([units(task(f"t{i}")) for i in range(200)])
    leases = await q.take(200)
    stolen = {lease.entry for lease in leases[::10]}
    await q.release([x for x in leases if x.entry in stolen])
    committer = Committer(q)

    async def commit(lease: object) -> bool:
        try:
            await committer.commit(lease, Done(b"{}"))  # type: ignore[attr-defined,arg-type]
        except LeaseLost:
            return False
        return True

    results = await asyncio.gather(*(commit(x) for x in leases))
    assert [not r for r in results] == [x.entry in stolen for x in leases]


async def test_the_heartbeat_keeps_leases_while_the_event_loop_is_blocked(server: Server) -> None:
    a, b = queue(server, "a"), queue(server, "b")
    await a.publish([units(task())])
    [lease] = await a.take(1)
    lost: list[object] = []
    heartbeat = Heartbeat(server.url, lease=0.6, on_lost=lost.append)
    heartbeat.hold(a, lease)
    heartbeat.start()
    time.sleep(1.5)  # a handler that blocks the loop is the point
    assert (await b.reclaim(1, lease=0.6, max_deliveries=3)).leases == []
    heartbeat.stop()
    await eventually(lambda: _reclaimed(b), "a stopped heartbeat lets the lease go")
    with pytest.raises(LeaseLost):
        await Committer(a).commit(lease, Dead("x", "y"))


async def _reclaimed(b: SceneQueue) -> bool:
    return bool((await b.reclaim(1, lease=0.6, max_deliveries=3)).leases)


async def test_leases_in_two_lanes_that_share_an_entry_id_are_both_kept(server: Server) -> None:
    a, b = queue(server, "a"), queue(server, "b")
    # One batch, one millisecond: both streams count from 0.
    await a.publish([units(task("urgent", priority=9)), units(task("plain"))])
    leases = await a.take(2)
    assert len({lease.entry for lease in leases}) == 1
    heartbeat = Heartbeat(server.url, lease=0.6, on_lost=lambda _: None)
    for lease in leases:
        heartbeat.hold(a, lease)
    heartbeat.start()
    await eventually(lambda: heartbeat.heard > 0, "a first beat")
    first = heartbeat.heard
    await eventually(lambda: heartbeat.heard >= first + 1200, "two leases of beats")
    assert (await b.reclaim(2, lease=0.6, max_deliveries=3)).leases == []
    heartbeat.drop(leases[0])
    await eventually(lambda: _reclaimed(b), "only the dropped one is let go")
    heartbeat.stop()
    await Committer(a).commit(leases[1], Dead("x", "y"))


async def test_a_lost_lease_is_reported_to_its_former_owner(server: Server) -> None:
    a = queue(server, "a")
    await a.publish([units(task())])
    [lease] = await a.take(1)
    await queue(server, "b").reclaim(1, lease=0.0, max_deliveries=3)
    lost: list[object] = []
    heartbeat = Heartbeat(server.url, lease=0.3, on_lost=lost.append)
    heartbeat.hold(a, lease)
    heartbeat.start()
    await eventually(lambda: lost == [lease], "the heartbeat notices")
    heartbeat.stop()


async def test_consumers_racing_with_crashes_commit_every_task_exactly_once(
    either: Server,
) -> None:
    await queue(either).publish([units(task(f"t{i}")) for i in range(60)])
    rng = random.Random(7)

    async def consumer(name: str) -> None:
        q = queue(either, name)
        committer = Committer(q)
        while (await q.counts()).open_tasks - (await q.counts()).reviewing > 0:
            leases = await q.take(3)
            leases += (await q.reclaim(3, lease=0.05, max_deliveries=100)).leases
            for lease in leases:
                if rng.random() < 0.3:
                    continue  # forgets it, as a crash would
                await asyncio.sleep(rng.random() * 0.1)
                with contextlib.suppress(LeaseLost):
                    await committer.commit(lease, Done(lease.task_id.encode()))

    async with asyncio.timeout(60):
        await asyncio.gather(*(consumer(f"c{i}") for i in range(6)))
    events = await either.client.xrange(Keys("code").events)
    assert sorted(f[b"id"].decode() for _, f in events) == sorted(f"t{i}" for i in range(60))
    assert (await queue(either).counts()).unaccounted == 0


async def test_idle_consumers_are_forgotten_but_never_with_work(either: Server) -> None:
    a, b = queue(either, "a"), queue(either, "b")
    await a.publish([units(task("kept")), units(task("done"))])
    await a.take(1)
    # Redis 7.0 knows no consumer that never got anything.
    [lease] = await b.take(1)
    await Committer(b).commit(lease, Done(b"{}"))

    async def consumers() -> list[dict[str, Any]]:
        return list(await either.client.xinfo_consumers("tasks:code", "workers"))

    async def silent() -> bool:
        return [c["idle"] > 1 for c in await consumers()] == [True, True]

    await eventually(silent, "both are silent")
    await a.gc(idle=0.001)
    assert [c["name"] for c in await consumers()] == [b"a"]


async def test_the_keys_of_a_scene_share_one_cluster_slot(either: Server) -> None:
    from redis.crc import key_slot

    keys = Keys("code")
    every = [*keys.lanes, keys.prefix, keys.events, keys.dead, keys.ledger("任务"), keys.card("c")]
    assert len({key_slot(k.encode()) for k in every}) == 1


async def test_waiting_returns_as_soon_as_work_arrives(server: Server) -> None:
    q = queue(server)
    assert await q.take(1) == []
    waiter = asyncio.create_task(wait_any([q], 10_000))

    async def blocked() -> bool:
        return (await server.client.info("clients"))["blocked_clients"] == 1

    await eventually(blocked, "the server keeps it waiting")
    await queue(server).publish([units(task())])
    await asyncio.wait_for(waiter, 5)
    assert len(await q.take(1)) == 1


async def test_a_late_heartbeat_never_costs_a_worker_its_own_work(either: Server) -> None:
    a = queue(either, "a")
    await a.publish([units(task())])
    [lease] = await a.take(1)
    got = await a.reclaim(1, lease=0.0, max_deliveries=1, holding=[lease])
    assert (got.leases, got.buried) == ([], 0)
    await Committer(a).commit(lease, Done(b"{}"))


async def test_after_an_outage_nobody_takes_over_before_the_living_could_renew(
    server: Server,
) -> None:
    beat = Heartbeat(server.url, lease=0.3, on_lost=lambda _: None)
    beat.start()
    assert not beat.steady
    await eventually(lambda: beat.steady, "a whole lease of good beats")
    beat._url = "redis://127.0.0.1:1/0"
    beat._client = None
    await eventually(lambda: not beat.steady, "a missed beat starts the count anew")
    beat.stop()


async def test_delayed_work_whose_ledger_is_gone_is_said_and_stops_nobody(either: Server) -> None:
    q = queue(either)
    await q.publish([units(task("lost")), units(task("fine"))])
    for lease in await q.take(2):
        await Committer(q).commit(lease, Retry(delay=0.001, error="x"))
    await either.client.delete(q.keys.ledger("lost"))
    await eventually(lambda: _promoted(q), "the other one is promoted")
    [letter] = await entries_of(control(either).server, control(either).keys.dead)
    assert (letter["id"], letter["reason"]) == ("lost", "payload_lost")
    assert await control(either).revive([letter["entry"]], ME) == 0
    counts = await q.counts()
    assert (counts.unaccounted, counts["tasks_dead"], counts.open_tasks) == (0, 1, 1)


async def test_a_server_that_cannot_write_for_now_is_waited_for(server: Server) -> None:
    answers = ["MISCONF Valkey is configured to save", "BUSY running a script", None]

    async def ask() -> str:
        answer = answers.pop(0)
        if answer is not None:
            raise redis.exceptions.ResponseError(answer)
        return "done"

    assert await server.persist(ask) == "done"
    with pytest.raises(redis.exceptions.ResponseError):
        await server.persist(lambda: server.client.execute_command("XLEN"))
