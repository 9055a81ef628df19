"""Who is there, and when a process that is asked to drain may end."""

from __future__ import annotations

import asyncio

import pytest

from common import presence
from common.presence import Presence, Process, living
from common.queue.committer import Committer, Decision, Done
from common.queue.connection import Server
from common.queue.control import Who, drain
from common.queue.quiet import quiet
from common.queue.scene_queue import SceneQueue
from tests.helpers import eventually, task, units

ME = Who("ann@here", "upgrade")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_LISTEN", 0.02)
    monkeypatch.setattr(presence, "_HEARD", 0.06)


async def test_a_process_is_listed_from_its_beginning_to_its_end(server: Server) -> None:
    async with Presence(server, "worker", "a", asyncio.Event()):
        await eventually(lambda: _there(server, [Process("worker", "a")]), "it is listed")
        async with Presence(server, "reviewer", "b", asyncio.Event()):
            both = [Process("reviewer", "b"), Process("worker", "a")]
            await eventually(lambda: _there(server, both), "both are")
    assert await living(server) == []


async def test_a_killed_process_is_not_listed_for_long(server: Server) -> None:
    await server.client.zadd(presence.PROCESSES, {"worker dead": 1.0})
    now = await presence.clock(server)
    await server.client.zadd(presence.PROCESSES, {"worker silent": now - presence.SILENT - 1})
    assert await living(server) == []
    async with Presence(server, "worker", "a", asyncio.Event()):
        await eventually(lambda: _there(server, [Process("worker", "a")]), "it is listed")
    assert await server.client.zrange(presence.PROCESSES, 0, -1) == [b"worker silent"]


async def test_only_processes_that_ran_when_the_order_came_are_meant(server: Server) -> None:
    before, after = asyncio.Event(), asyncio.Event()
    async with Presence(server, "worker", "old", before) as old:
        await drain(server, ME)
        async with Presence(server, "worker", "new", after) as new:
            await eventually(before.is_set, "the old one obeys")
            assert old.asked == "ann@here"
            assert await old.drain_asked()
            assert not await new.drain_asked()
            assert not after.is_set()


async def test_an_order_is_heard_after_whatever_went_wrong_with_hearing(server: Server) -> None:
    draining = asyncio.Event()
    async with Presence(server, "worker", "a", draining) as there:
        await server.client.lpush("fleet:drain", "no order")
        await eventually(lambda: there.deaf, "it cannot be read")
        await server.client.delete("fleet:drain")
        await drain(server, ME)
        await eventually(draining.is_set, "it obeys all the same")


async def test_a_process_that_others_need_ends_after_them_or_when_its_patience_ends(
    server: Server,
) -> None:
    free, patient, hasty = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def others_are_gone(_: Server) -> bool:
        return free.is_set()

    async with (
        Presence(server, "r", "a", patient, last=others_are_gone, patience=600),
        Presence(server, "r", "b", hasty, last=others_are_gone, patience=0.3),
    ):
        await drain(server, ME)
        await eventually(hasty.is_set, "one has lost its patience")
        assert not patient.is_set()
        free.set()
        await eventually(patient.is_set, "the other may go")


async def test_quiet_is_when_nothing_runs_and_nothing_waits_for_review(either: Server) -> None:
    q, reviews = SceneQueue(either, "code", consumer="a"), SceneQueue(
        either, "code", consumer="r", stage="review"
    )  # fmt: skip
    scenes = ["code", "web"]
    assert await quiet(either, scenes)
    await q.publish([units(task("one")), units(task("two"))])
    assert await quiet(either, scenes), "what waits is not under way"
    [first] = await q.take(1)
    assert not await quiet(either, scenes)
    await q.release([first])
    assert await quiet(either, scenes), "what was handed back is not either"
    [again] = await q.take(1)
    await Committer(q).commit(again, Done(b"{}"))
    assert not await quiet(either, scenes), "it waits for its review"
    assert await quiet(either, ["web"])
    [event] = await reviews.take(1)
    assert not await quiet(either, scenes)
    await Committer(reviews).commit(event, Decision("passed", "accepted", 100, b"{}"))
    assert await quiet(either, scenes)


async def _there(server: Server, wanted: list[Process]) -> bool:
    return await living(server) == wanted
