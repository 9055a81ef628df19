"""The edges of a lease and of a budget of retries: who is let in, when, and how often."""

from __future__ import annotations

import asyncio

import pytest

from common.failures import LeaseLost
from common.presence import clock
from common.queue.committer import Committer, Dead, Decision, Done, Retry
from common.queue.connection import Server
from common.queue.control import Control, Who
from common.queue.scene_queue import Lease, SceneQueue
from tests.helpers import entries_of, eventually, task, units

ME = Who("ann@here", "once more")


def queue(server: Server, consumer: str = "a") -> SceneQueue:
    return SceneQueue(server, "code", consumer=consumer)


async def late(q: SceneQueue, leases: list[Lease]) -> list[BaseException | None]:
    """What a former owner is told when it commits."""
    committer = Committer(q)
    return await asyncio.gather(
        *(committer.commit(lease, Done(b"{}")) for lease in leases), return_exceptions=True
    )


@pytest.mark.parametrize("count", [1, 10])  # looked up one by one, and all of a consumer's at once
async def test_who_handed_work_back_neither_commits_nor_hands_back_what_another_took(
    either: Server, count: int
) -> None:
    a, b = queue(either, "a"), queue(either, "b")
    await a.publish([units(task(f"t{n}")) for n in range(count)])
    given = await a.take(count)
    await a.release(given)
    taken = await b.take(count)
    assert {lease.deliveries for lease in given + taken} == {1}
    assert all(isinstance(answer, LeaseLost) for answer in await late(a, given))
    assert await a.release(given) == 0
    assert await late(b, taken) == [None] * count


@pytest.mark.parametrize("count", [1, 10])
async def test_an_owner_that_took_its_work_back_cannot_commit_its_first_lease(
    either: Server, count: int
) -> None:
    a, b = queue(either, "a"), queue(either, "b")
    await a.publish([units(task(f"t{n}")) for n in range(count)])
    first = await a.take(count)
    for heir in (b, a):
        last = (await heir.reclaim(count, lease=0.0, max_deliveries=9)).leases
    assert {lease.deliveries for lease in last} == {3}
    assert all(isinstance(answer, LeaseLost) for answer in await late(a, first))
    assert await late(a, last) == [None] * count


async def test_delayed_work_waits_for_its_time_twice_as_long_each_time_up_to_five_minutes(
    either: Server,
) -> None:
    q, delays = queue(either), []
    committer = Committer(q, max_retries=9)
    await q.publish([units(task())])
    for _ in range(4):
        [lease] = await q.take(1)
        await committer.commit(lease, Retry(delay=100.0, error="down"))
        [(member, due)] = await either.client.zrange(q.keys.delayed, 0, -1, withscores=True)
        delays.append(due / 1000 - await clock(either))
        assert await q.promote() == 0
        counts = await q.counts()
        assert (counts.delayed, counts.waiting) == (1, 0)
        await either.client.zadd(q.keys.delayed, {member: 1})
        assert await q.promote() == 1
    assert delays == pytest.approx([100, 200, 300, 300], abs=5)


async def test_waits_for_a_rate_limit_end_too(either: Server) -> None:
    q = queue(either)
    committer = Committer(q, max_retries=0, max_waits=2)
    await q.publish([units(task())])
    for _ in range(3):
        await eventually(lambda: _due(q), "it is due")
        [lease] = await q.take(1)
        await committer.commit(lease, Retry(delay=0.001, error="429", counted=False))
    counts = await q.counts()
    assert (counts["waited"], counts["dead"]) == (2, 1)


async def _due(q: SceneQueue) -> bool:
    await q.promote()
    return (await q.counts()).waiting == 1


async def test_a_revived_unit_has_its_budgets_again_and_a_ledger_that_stays(either: Server) -> None:
    q, control = queue(either), Control(either, "code")
    committer = Committer(q, max_retries=1, max_waits=1)
    await q.publish([units(task())])
    for counted in (True, False, True):
        await eventually(lambda: _due(q), "it is due")
        [lease] = await q.take(1)
        await committer.commit(lease, Retry(delay=0.001, error="before", counted=counted))
    [letter] = await entries_of(either, q.keys.dead)
    assert await either.client.pttl(q.keys.ledger("t")) > 0
    assert await control.revive([letter["entry"]], ME) == 1
    assert await either.client.pttl(q.keys.ledger("t")) == -1
    for counted in (True, False):
        await eventually(lambda: _due(q), "it is due")
        [lease] = await q.take(1)
        await committer.commit(lease, Retry(delay=0.001, error="after", counted=counted))
    assert (await q.counts())["dead"] == 0
    await eventually(lambda: _due(q), "it is due")
    [lease] = await q.take(1)
    await committer.commit(lease, Dead("invalid_task", "no"))
    [letter] = await entries_of(either, q.keys.dead)
    assert letter["history"].splitlines() == ["after", "after"]


async def test_running_work_is_no_backlog(either: Server) -> None:
    q = queue(either)
    for names in (("a", "b", "c"), ("d", "e", "f")):
        reply = await q.publish([units(task(name)) for name in names], max_backlog=3)
        assert reply.outcome == "published"
        assert len(await q.take(3)) == 3


async def test_what_is_said_at_once_goes_in_few_calls(either: Server) -> None:
    q, calls = queue(either), 0
    await q.publish([units(task(f"t{n}")) for n in range(200)])
    leases = await q.take(200)
    real = q.server.fcall

    async def counting(name: str, keys: object, argv: object) -> object:
        nonlocal calls
        calls += name == "commit"
        return await real(name, keys, argv)  # type: ignore[arg-type]

    q.server.fcall = counting  # type: ignore[method-assign]
    assert await late(q, leases) == [None] * 200
    assert calls <= 10


async def test_the_answers_of_a_letter_thrown_away_go_with_it(either: Server) -> None:
    q, control = queue(either), Control(either, "code")
    await q.publish([units(task())])
    [lease] = await q.take(1)
    await either.client.hset(q.keys.journal("t", "r1-s0"), "request", "answer")
    await Committer(q).commit(lease, Dead("budget_exceeded", "no money"))
    assert await either.client.exists(q.keys.journal("t", "r1-s0"))  # paid for once is enough
    [letter] = await entries_of(either, q.keys.dead)
    assert await control.purge([letter["entry"]], ME) == 1
    assert not await either.client.exists(q.keys.journal("t", "r1-s0"))


@pytest.mark.parametrize("name", ["decisions", "audit"])
async def test_logs_for_people_do_not_grow_for_ever(either: Server, name: str) -> None:
    q, control = queue(either), Control(either, "code")
    stream = q.keys.prefix + name
    fill = "for _ = 1, 110000 do redis.call('XADD', KEYS[1], '*', 'a', '') end"
    await either.client.eval(fill, 1, stream)
    if name == "audit":
        assert await control.pause(ME)
    else:
        await _decide(either, q)
    assert 100_000 <= await either.client.xlen(stream) < 110_000


async def _decide(server: Server, q: SceneQueue) -> None:
    reviews = SceneQueue(server, "code", consumer="r", stage="review")
    await q.publish([units(task())])
    await late(q, await q.take(1))
    [event] = await reviews.take(1)
    await Committer(reviews).commit(event, Decision("passed", "accepted", 90, b"{}"))
