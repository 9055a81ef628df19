"""First tries of one task are reviewed together: none before the last of them has ended."""

from __future__ import annotations

import asyncio

import pytest

from common.failures import LeaseLost
from common.queue.committer import Cancelled, Committer, Dead, Decision, Done, Outcome, Retry
from common.queue.connection import Server
from common.queue.control import Control, Who
from common.queue.scene_queue import Lease, SceneQueue
from common.task import Assignment
from tests.helpers import entries_of, eventually, task, units

ME = Who("ann@here", "because")


def queue(server: Server, consumer: str = "a", **kwargs: object) -> SceneQueue:
    return SceneQueue(server, "code", consumer=consumer, **kwargs)  # type: ignore[arg-type]


async def taken(server: Server, samples: int) -> tuple[SceneQueue, list[Lease]]:
    q = queue(server)
    await q.publish([units(task(samples=samples))])
    return q, await q.take(samples)


async def commit(q: SceneQueue, lease: Lease, outcome: Outcome | None = None) -> None:
    await Committer(q).commit(lease, outcome or Done(lease.unit.encode()))


async def held(q: SceneQueue) -> tuple[int, list[str]]:
    """How many events are held back, and the units whose events are out."""
    counts = await q.counts()
    assert counts.unaccounted == 0
    out = await entries_of(q.server, q.keys.events)
    assert all(row["p"] == row["u"] for row in out if row["u"].startswith("r1"))
    return counts["held"], [row["u"] for row in out]


async def the_letter(q: SceneQueue) -> str:
    [letter] = await entries_of(q.server, q.keys.dead)
    return letter["entry"]


async def test_events_of_first_tries_go_out_together_in_the_order_of_the_samples(
    either: Server,
) -> None:
    q, leases = await taken(either, 12)
    for lease in reversed(leases[1:]):
        await commit(q, lease)
    assert await held(q) == (11, [])
    await commit(q, leases[0])
    assert await held(q) == (0, [f"r1-s{n}" for n in range(12)])
    left = await either.client.hkeys(q.keys.ledger("t"))
    assert not [f for f in left if f == b"first" or f.startswith(b"e:")]


async def test_one_call_may_end_a_whole_group_and_a_repeated_one_changes_nothing(
    either: Server,
) -> None:
    q, leases = await taken(either, 3)
    committer = Committer(q)
    await asyncio.gather(*(committer.commit(x, Done(x.unit.encode())) for x in leases[:2]))
    await commit(q, leases[0])  # its reply got lost, say
    assert await held(q) == (2, [])
    await asyncio.gather(*(committer.commit(x, Done(x.unit.encode())) for x in leases))
    assert await held(q) == (0, ["r1-s0", "r1-s1", "r1-s2"])


async def test_samples_that_end_without_an_attempt_do_not_hold_the_others_for_ever(
    either: Server,
) -> None:
    q, (dead, retried, stopped, done) = await taken(either, 4)
    await commit(q, done)
    await commit(q, dead, Dead("invalid_task", "no"))
    await commit(q, retried, Retry(0.001, "later"))
    await commit(q, stopped, Cancelled())
    assert await held(q) == (1, [])

    async def due() -> bool:
        return await q.promote() == 1

    await eventually(due, "the delayed one is due")
    [again] = await q.take(1)
    assert (await queue(either, "b").reclaim(1, lease=0.0, max_deliveries=1)).buried == 1
    assert await held(q) == (0, ["r1-s3"])
    assert again.unit == "r1-s1"


async def test_a_group_of_which_nothing_is_left_leaves_nothing_behind(either: Server) -> None:
    q, leases = await taken(either, 2)
    for lease in leases:
        await commit(q, lease, Dead("invalid_task", "no"))
    assert await held(q) == (0, [])
    ledger = await either.client.hgetall(q.keys.ledger("t"))
    assert ledger[b"st"] == b"dead"
    assert b"first" not in ledger


async def test_a_cancelled_task_is_reviewed_as_far_as_it_had_come(either: Server) -> None:
    q, reviews = queue(either), queue(either, "r", stage="review")
    await q.publish([units(task(samples=4))])
    done, running = await q.take(2)
    await commit(q, done)
    assert (await Control(either, "code").cancel("t", ME)).units == 2
    assert await held(q) == (1, [])
    await commit(q, running, Cancelled())
    assert await held(q) == (0, ["r1-s0"])
    [event] = await reviews.take(5)
    await Committer(reviews).commit(event, Decision("passed", "accepted", 90, b"{}"))
    counts = await q.counts()
    assert (counts["tasks_accepted"], counts.open_tasks, counts.unaccounted) == (1, 0, 0)


async def test_an_open_group_waits_for_a_revived_try_and_a_complete_one_does_not(
    either: Server,
) -> None:
    q, (dead, one, other) = await taken(either, 3)
    control = Control(either, "code")
    await commit(q, dead, Dead("invalid_task", "no"))
    await commit(q, one)
    assert await control.revive([await the_letter(q)], ME) == 1
    await commit(q, other)
    assert await held(q) == (2, [])  # for the one that lives again
    [again] = await q.take(1)
    await commit(q, again, Dead("invalid_task", "still no"))
    assert await held(q) == (0, ["r1-s1", "r1-s2"])

    assert await control.revive([await the_letter(q)], ME) == 1
    [again] = await q.take(1)
    await commit(q, again)
    assert await held(q) == (0, ["r1-s1", "r1-s2", "r1-s0"])


async def test_a_dead_letter_thrown_away_changes_nothing_about_its_group(either: Server) -> None:
    q, (dead, one, other) = await taken(either, 3)
    await commit(q, dead, Dead("invalid_task", "no"))
    await commit(q, one)
    assert await Control(either, "code").purge([await the_letter(q)], ME) == 1
    assert await held(q) == (1, [])
    await commit(q, other)
    assert await held(q) == (0, ["r1-s1", "r1-s2"])


@pytest.mark.parametrize("gone", ["its ledger", "everything"])
async def test_without_a_ledger_an_event_goes_out_at_once(either: Server, gone: str) -> None:
    q, (one, other) = await taken(either, 2)
    await commit(q, one)
    if gone == "everything":
        await either.client.flushall()
        await q.publish([units(task(samples=1))])
        [other] = await q.take(1)
    else:
        await either.client.delete(q.keys.ledger("t"))
    await commit(q, other)
    assert [row["u"] for row in await entries_of(either, q.keys.events)] == [other.unit]


async def test_a_try_of_a_former_life_of_its_task_loses_no_event_and_holds_none_up(
    either: Server,
) -> None:
    q, (old, _) = await taken(either, 2)
    await either.client.delete(q.keys.ledger("t"))
    await q.publish([units(task(samples=2))])
    one, other = await q.take(2)
    await commit(q, one)
    await commit(q, old)  # its place in the group is taken
    assert await held(q) == (1, [old.unit])
    await commit(q, other)
    assert await held(q) == (0, [old.unit, one.unit, other.unit])


async def test_a_try_whose_entry_somebody_removed_does_not_hold_the_others_for_ever(
    either: Server,
) -> None:
    q, (removed, other) = await taken(either, 2)
    await commit(q, other)
    await either.client.xdel(q.streams[1], removed.entry)
    with pytest.raises(LeaseLost):
        await commit(q, removed, Dead("invalid_task", "no"))
    assert [row["u"] for row in await entries_of(either, q.keys.events)] == [other.unit]


async def test_later_revisions_are_reviewed_one_by_one(either: Server) -> None:
    q, leases = await taken(either, 2)
    reviews = queue(either, "r", stage="review")
    for lease in leases:
        await commit(q, lease)
    for event in await reviews.take(2):
        sample = int(event.unit[-1])
        revised = Assignment(task=task(samples=2), revision=2, sample=sample)
        again = Decision("failed", "iterate", 10, b"{}", revised)
        await Committer(reviews).commit(event, again)
    first, _ = await q.take(2)
    await commit(q, first)
    assert await held(q) == (0, [first.unit])


async def test_first_and_later_tries_are_counted_apart(either: Server) -> None:
    q, leases = await taken(either, 3)
    reviews = queue(either, "r", stage="review")
    for lease in leases:
        await commit(q, lease)
    settle = Committer(reviews)
    first, second, third = await reviews.take(3)
    revised = Assignment(task=task(samples=3), revision=2, sample=1)
    await settle.commit(first, Decision("passed", "accepted", 90, b"{}"))
    await settle.commit(second, Decision("failed", "iterate", 10, b"{}", revised))
    await settle.commit(third, Decision("unverified", "accepted", 90, b"{}"))
    [lease] = await q.take(1)
    await commit(q, lease)
    [again] = await reviews.take(1)
    await settle.commit(again, Decision("passed", "accepted", 85, b"{}"))
    counts = await q.counts()
    names = (
        "accepted", "accepted_first", "accepted_retried", "passed", "passed_first",
        "failed", "failed_first", "unverified", "reviewed",
    )  # fmt: skip
    assert [counts[name] for name in names] == [3, 2, 1, 2, 1, 1, 1, 1, 4]


async def test_workers_that_race_and_crash_release_each_group_once(either: Server) -> None:
    """Ten groups of four; a third of all leases are lost on the way."""
    await queue(either).publish([units(task(f"t{n}", samples=4)) for n in range(10)])

    async def worker(name: str, forgets: int) -> None:
        q = queue(either, name)
        committer = Committer(q)
        turn = 0
        while (await q.counts())["committed"] < 40:
            leases = await q.take(3)
            leases += (await q.reclaim(3, lease=0.05, max_deliveries=1000)).leases
            for lease in leases:
                turn += 1
                if turn % 3 != forgets:
                    await asyncio.gather(
                        committer.commit(lease, Done(lease.unit.encode())), return_exceptions=True
                    )

    async with asyncio.timeout(30):
        await asyncio.gather(*(worker(f"w{n}", n % 3) for n in range(5)))
    events = await entries_of(either, queue(either).keys.events)
    assert len({(e["id"], e["u"]) for e in events}) == len(events) == 40
    order = [event["id"] for event in events]
    assert all(order[n : n + 4].count(order[n]) == 4 for n in range(0, 40, 4))
    assert (await held(queue(either)))[0] == 0
