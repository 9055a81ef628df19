"""What people do to a running scene: it takes effect at once, loses nothing, and is on record."""

from __future__ import annotations

import asyncio

import pytest

from common.failures import LeaseLost
from common.presence import Presence, clock, living
from common.queue.committer import Cancelled, Committer, Dead, Decision, Done, Retry
from common.queue.connection import Server
from common.queue.control import AUDIT, Control, Who, drain, drain_asked
from common.queue.embedded import EmbeddedServer
from common.queue.heartbeat import Heartbeat
from common.queue.scene_queue import Lease, Reclaimed, SceneQueue, wait_any
from common.task import Assignment
from tests.helpers import entries_of, eventually, task, units

ME = Who("ann@here", "the provider is down")


def queue(server: Server, consumer: str = "a", **kwargs: object) -> SceneQueue:
    return SceneQueue(server, "code", consumer=consumer, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
def control(either: Server) -> Control:
    return Control(either, "code")


async def test_a_paused_scene_hands_out_nothing_until_it_is_resumed(
    either: Server, control: Control
) -> None:
    q = queue(either)
    await q.publish([units(task(f"t{n}")) for n in range(3)])
    [running] = await q.take(1)
    assert await control.pause(ME)
    assert not await control.pause(ME)
    assert await q.take(5) == []
    other = queue(either, "b")
    assert (await other.reclaim(5, lease=0.0, max_deliveries=3)).leases == []
    await Committer(q).commit(running, Done(b"{}"))  # what runs, runs to its end
    assert (await q.counts()).paused == "ann@here: the provider is down"

    assert await control.resume(ME)
    assert len(await q.take(5)) == 2
    counts = await q.counts()
    assert (counts.paused, counts.unaccounted) == ("", 0)
    assert [row["action"] for row in await entries_of(control.server, control.keys.audit)] == [
        "pause",
        "resume",
    ]


async def test_cancelling_a_task_ends_what_waits_and_stops_what_runs(
    either: Server, control: Control
) -> None:
    q = queue(either)
    await q.publish([units(task("wide", samples=4)), units(task("other"))])
    committer = Committer(q)
    first, second = await q.take(2)
    await committer.commit(first, Retry(delay=60.0, error="later"))  # one delayed, one running

    got = await control.cancel("wide", ME)
    assert (got.outcome, got.units) == ("stopping", 3)
    counts = await q.counts()
    assert (counts.waiting, counts.delayed, counts.running) == (1, 0, 1)

    stopped: list[object] = []
    beat = Heartbeat(either.url, lease=0.3, on_lost=lambda _: None, on_cancelled=stopped.append)
    beat.hold(q, second)
    beat.start()
    await eventually(lambda: second in stopped, "its worker is told")
    beat.stop()
    await committer.commit(second, Cancelled())
    counts = await q.counts()
    assert (counts["tasks_cancelled"], counts.open_tasks, counts.unaccounted) == (1, 1, 0)
    assert (await control.cancel("wide", ME)).outcome == "ended"
    assert (await control.cancel("who?", ME)).outcome == "unknown"
    assert await either.client.exists(q.keys.cancel) == 0
    assert [r["target"] for r in await entries_of(control.server, control.keys.audit)] == ["wide"]


async def test_a_cancelled_task_is_neither_retried_nor_taken_over_nor_iterated(
    either: Server, control: Control
) -> None:
    q, dead, reviews = queue(either), queue(either, "dead"), queue(either, "r", stage="review")
    await q.publish([units(task("retry")), units(task("crash")), units(task("review"))])
    retry, reviewed = await q.take(1), None
    await dead.take(1)
    [reviewed] = await q.take(1)
    await Committer(q).commit(reviewed, Done(b"{}"))
    for task_id in ("retry", "crash", "review"):
        assert (await control.cancel(task_id, ME)).outcome == "stopping"

    await Committer(q).commit(retry[0], Retry(delay=0.0, error="x"))
    assert (await q.reclaim(5, lease=0.0, max_deliveries=3)).leases == []
    [event] = await reviews.take(1)
    again = Assignment(task=task("review"), revision=2)
    await Committer(reviews).commit(event, Decision("failed", "iterate", 10, b"{}", again))
    counts = await q.counts()
    assert (counts["tasks_cancelled"], counts.open_tasks, counts.unaccounted) == (3, 0, 0)
    assert counts.waiting == counts.delayed == counts.running == counts.reviewing == 0


async def test_work_handed_back_after_its_task_was_cancelled_ends_without_anybody_taking_it(
    either: Server, control: Control
) -> None:
    q = queue(either)
    await q.publish([units(task()), units(task("goes-on"))])
    leases = await q.take(2)
    assert (await control.cancel("t", ME)).outcome == "stopping"
    await control.pause(ME)
    assert await q.release(leases) == 2
    counts = await q.counts()
    assert (counts["tasks_cancelled"], counts["cancelled"], counts["released"]) == (1, 1, 1)
    assert (counts.waiting, counts.open_tasks, counts.unaccounted) == (1, 1, 0)


async def test_who_meets_cancelled_work_does_not_wait_beside_other_work(
    either: Server, control: Control
) -> None:
    q = queue(either)
    await q.publish([units(task("wide", samples=3)), units(task("next"))])
    await either.client.sadd(q.keys.cancel, "wide")  # marked, its entries not found yet
    found: list[Lease] = []
    async with asyncio.timeout(3.0):
        while not found:
            found = await q.take(1)
            if not found:
                await wait_any([q], 60_000)
    assert [lease.task_id for lease in found] == ["next"]


async def test_the_answers_of_a_task_that_lives_again_outlast_its_old_letter(
    either: Server, control: Control
) -> None:
    q = queue(either)
    await q.publish([units(task())])
    [lease] = await q.take(1)
    await Committer(q).commit(lease, Dead("budget_exceeded", "x"))
    [letter] = await entries_of(control.server, control.keys.dead)
    await either.client.delete(q.keys.ledger("t"))  # as if its time had run out
    await q.publish([units(task())])
    await q.take(1)
    await either.client.hset(q.keys.journal("t", "r1-s0"), "request", "answer")
    assert await control.purge([letter["entry"]], ME) == 1
    assert await either.client.exists(q.keys.journal("t", "r1-s0"))


async def test_people_are_heard_by_a_server_whose_memory_is_full(
    valkey: EmbeddedServer, server: Server
) -> None:
    began = await clock(server)
    await server.client.config_set("maxmemory", 1)
    try:
        async with asyncio.timeout(10):
            assert await Control(server, "code").pause(ME)
            async with Presence(server, "worker", "a", asyncio.Event()):
                await eventually(lambda: _listed(server), "it is listed")
                await drain(server, ME)
                assert await drain_asked(server, began) == "ann@here"
    finally:
        await server.client.config_set("maxmemory", 0)


async def _listed(server: Server) -> bool:
    return bool(await living(server))


async def test_dead_letters_carry_their_history_and_can_be_purged(
    either: Server, control: Control
) -> None:
    a, b = queue(either, "worker-a"), queue(either, "worker-b")
    await a.publish([units(task("poison")), units(task("hopeless"))])
    _, hopeless = await a.take(2)
    await Committer(a, max_retries=0).commit(hopeless, Dead("invalid_task", "no such tool"))
    await b.reclaim(1, lease=0.0, max_deliveries=2)
    await a.reclaim(1, lease=0.0, max_deliveries=2)
    by_task = {
        letter["id"]: letter for letter in await entries_of(control.server, control.keys.dead)
    }
    lines = by_task["poison"]["history"].splitlines()
    assert [line.split(":")[0] for line in lines] == ["delivery 1", "delivery 2"]
    assert "worker-a" in lines[0]
    assert "worker-b" in lines[1]

    assert await control.purge([by_task["poison"]["entry"], "1-1"], ME) == 1
    assert [x["id"] for x in await entries_of(control.server, control.keys.dead)] == ["hopeless"]
    counts = await a.counts()
    assert (counts["dead"], counts.open_tasks, counts.unaccounted) == (1, 0, 0)
    assert [
        (r["action"], r["by"]) for r in await entries_of(control.server, control.keys.audit)
    ] == [("dead.purge", "ann@here")]


async def test_waiting_for_a_rate_limit_uses_up_no_retries(either: Server) -> None:
    q = queue(either)
    await q.publish([units(task())])
    committer = Committer(q, max_retries=0)
    for _ in range(3):
        await eventually(lambda: _due(q), "it is due again")
        [lease] = await q.take(1)
        await committer.commit(lease, Retry(delay=0.001, error="429", counted=False))
    counts = await q.counts()
    assert (counts["waited"], counts["retried"], counts["dead"], counts.unaccounted) == (3, 0, 0, 0)


async def _due(q: SceneQueue) -> bool:
    await q.promote()
    return (await q.counts()).waiting == 1


async def test_entries_of_a_reply_that_got_lost_are_handed_out_again_uncounted(
    either: Server,
) -> None:
    q = queue(either)
    await q.publish([units(task())])
    q.server, real = _LosesTheFirstReply(either.url), q.server
    assert await q.take(1) == []
    await q.server.close()
    q.server = real
    got = await q.reclaim(1, lease=0.0, max_deliveries=1)
    assert ([x.deliveries for x in got.leases], got.buried) == ([1], 0)
    # What it lets lapse otherwise counts: something is wrong with it.
    got = await q.reclaim(1, lease=0.0, max_deliveries=2)
    assert [x.deliveries for x in got.leases] == [2]
    await Committer(q).commit(got.leases[0], Done(b"{}"))


async def test_a_lost_reply_costs_none_of_its_entries_a_delivery_however_few_can_be_taken_at_once(
    either: Server,
) -> None:
    q = queue(either)
    await q.publish([units(task(f"t{n}")) for n in range(3)])
    q.server, real = _LosesTheFirstReply(either.url), q.server
    assert await q.take(3) == []
    await q.server.close()
    q.server = real
    mine: list[Lease] = []
    for _ in range(3):
        got = await q.reclaim(1, lease=0.0, max_deliveries=1, holding=mine)
        assert got.buried == 0
        mine += got.leases
    assert sorted((x.task_id, x.deliveries) for x in mine) == [("t0", 1), ("t1", 1), ("t2", 1)]


class _LosesTheFirstReply(Server):
    """A server whose first answer is lost on the way."""

    async def fcall(self, name: str, keys: object, argv: object) -> object:
        answer = await super().fcall(name, keys, argv)  # type: ignore[arg-type]
        if self.interruptions == 0:
            self.interruptions = 1
            return await super().fcall(name, keys, argv)  # type: ignore[arg-type]
        return answer


async def test_letters_of_a_task_that_lives_again_are_not_revived(
    either: Server, control: Control
) -> None:
    q = queue(either)
    await q.publish([units(task(samples=2))])
    for lease in await q.take(2):
        await Committer(q).commit(lease, Dead("invalid_task", "x"))
    letters = [letter["entry"] for letter in await entries_of(control.server, control.keys.dead)]
    await either.client.delete(q.keys.ledger("t"))  # as if its time had run out
    await q.publish([units(task(samples=2))])
    assert await control.revive(letters, ME) == 0

    await either.client.delete(q.keys.ledger("t"))
    await q.take(2)
    assert await control.revive(letters, ME) == 2
    assert await control.revive(letters, ME) == 0
    for lease in await q.take(2):
        await Committer(q).commit(lease, Dead("invalid_task", "x"))
    assert await either.client.hget(q.keys.ledger("t"), "st") == b"dead"


async def test_plain_work_does_not_starve_between_full_lanes(either: Server) -> None:
    q = queue(either)
    await q.publish([units(task(f"{p}-{n}", priority=p)) for n in range(40) for p in (9, 5, 1)])
    served = [(await q.take(1))[0].stream for _ in range(40)]
    assert [served.count(lane) for lane in (1, 2, 3)] == [25, 10, 5]


async def test_draining_means_those_who_run_now_and_is_on_record(server: Server) -> None:
    seconds, micros = await server.client.time()
    before = seconds + micros / 1e6
    assert await drain_asked(server, before) is None
    await drain(server, ME)
    assert await drain_asked(server, before) == "ann@here"
    assert await drain_asked(server, before + 60) is None
    assert [row["action"] for row in await entries_of(server, AUDIT)] == ["drain"]


async def test_attempts_of_one_name_in_two_scenes_never_share_a_file(server: Server) -> None:
    code = queue(server)
    web = SceneQueue(server, "web", consumer="a")
    for q in (code, web):
        await q.publish([units(task())])
    [one], [other] = await code.take(1), await web.take(1)
    same_entry = other.attempt_id.replace(other.entry, one.entry)
    assert one.attempt_id != same_entry


async def test_an_entry_that_somebody_removed_costs_the_rest_of_the_batch_nothing(
    either: Server,
) -> None:
    q = queue(either)
    await q.publish([units(task(f"t{n}")) for n in range(10)])
    leases = await q.take(10)
    committer = Committer(q)
    await either.client.xdel(q.streams[1], leases[4].entry)
    outcomes = [Retry(1.0, "x") if n == 4 else Done(b"{}") for n in range(10)]
    replies = await asyncio.gather(
        *(committer.commit(x, o) for x, o in zip(leases, outcomes, strict=True)),
        return_exceptions=True,
    )
    assert [type(r) for r in replies] == [LeaseLost if n == 4 else type(None) for n in range(10)]
    counts = await q.counts()
    assert (counts["committed"], counts.reviewing, counts.running) == (9, 9, 0)
    assert counts.unaccounted == 1  # which is what really happened


async def test_a_lost_reply_of_a_take_over_kills_nobody(either: Server) -> None:
    a, b = queue(either, "a"), queue(either, "b")
    await a.publish([units(task())])
    await a.take(1)

    async def silent() -> bool:
        rows = await either.client.xpending_range(a.streams[1], "workers", "-", "+", 1, idle=200)
        return bool(rows)

    async def taken_over() -> bool:
        got.append(await b.reclaim(1, lease=0.2, max_deliveries=2))
        return bool(got[-1].leases or got[-1].buried)

    got: list[Reclaimed] = []
    await eventually(silent, "its owner is silent")
    b.server, real = _LosesTheFirstReply(either.url), b.server
    assert not await taken_over()
    await b.server.close()
    b.server = real
    await eventually(taken_over, "it is handed out again")
    assert ([x.deliveries for x in got[-1].leases], got[-1].buried) == ([2], 0)


async def test_work_handed_back_hides_no_dead_consumers_work(either: Server) -> None:
    a, dead = queue(either, "a"), queue(either, "dead")
    await a.publish([units(task(f"t{n}")) for n in range(301)])
    handed_back = await a.take(300)
    [lost] = await dead.take(1)
    await a.release(handed_back)
    got = await a.reclaim(1, lease=0.0, max_deliveries=3)
    assert [x.task_id for x in got.leases] == [lost.task_id]


async def test_answers_are_journalled_on_a_retry_and_after_a_revival_too(
    either: Server, control: Control
) -> None:
    q = queue(either)
    await q.publish([units(task())])

    async def kept(request: str) -> bool:
        keys = (q.keys.journal("t", "r1-s0"), q.keys.ledger("t"))
        return bool(await either.fcall("keep", keys, ("r1-s0", request, b"answer", 60_000)))

    [lease] = await q.take(1)
    assert await kept("first")
    await Committer(q).commit(lease, Retry(0.001, "x"))
    await eventually(lambda: _due(q), "it is due again")
    [lease] = await q.take(1)
    assert await kept("on the retry")
    await Committer(q).commit(lease, Dead("budget_exceeded", "x"))
    [letter] = await entries_of(control.server, control.keys.dead)
    await control.revive([letter["entry"]], ME)
    [lease] = await q.take(1)
    assert await kept("after the revival")
    assert await either.client.hlen(q.keys.journal("t", "r1-s0")) == 3
    await Committer(q).commit(lease, Done(b"{}"))
    assert not await kept("too late")


async def test_words_that_are_no_utf8_cost_the_others_in_the_batch_nothing(server: Server) -> None:
    q = queue(server)
    await q.publish([units(task("broken")), units(task("fine"))])
    broken, fine = await q.take(2)
    committer = Committer(q)
    await asyncio.gather(
        committer.commit(broken, Dead("invalid_task", "half a pair: \udcff")),
        committer.commit(fine, Done(b"{}")),
    )
    counts = await q.counts()
    assert (counts["committed"], counts["dead"], counts.unaccounted) == (1, 1, 0)
