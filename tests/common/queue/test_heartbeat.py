"""Leases of the living are kept, whatever the server, the network or the event loop do."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from common.queue.committer import Committer, Done
from common.queue.connection import Server
from common.queue.control import Control, Who
from common.queue.embedded import EmbeddedServer
from common.queue.heartbeat import Heartbeat
from common.queue.keys import Keys
from common.queue.scene_queue import Lease, SceneQueue
from tests.chaos.proxy import Proxy
from tests.helpers import eventually, task, units

LEASE = 1.2


def queue(server: Server, consumer: str) -> SceneQueue:
    return SceneQueue(server, "code", consumer=consumer)


async def held(server: Server, task_id: str = "t") -> tuple[SceneQueue, Lease]:
    a = queue(server, "a")
    await a.publish([units(task(task_id))])
    [lease] = await a.take(1)
    return a, lease


@contextmanager
def beating(url: str, a: SceneQueue, lease: Lease, *, lease_time: float) -> Iterator[Heartbeat]:
    """A heartbeat that holds this one lease, which lasts ``lease_time`` seconds."""
    beat = Heartbeat(url, lease=lease_time, on_lost=lambda _: None)
    beat.hold(a, lease)
    beat.start()
    try:
        yield beat
    finally:
        beat.stop()


class Thief(threading.Thread):
    """Another consumer, with a loop of its own, that takes whatever has been silent for a lease."""

    def __init__(self, url: str, lease: float) -> None:
        super().__init__(daemon=True)
        self._url, self._lease = url, lease
        self.enough = threading.Event()
        self.stolen: list[str] = []

    def run(self) -> None:
        asyncio.run(self._steal())

    async def _steal(self) -> None:
        server = Server(self._url, patience=10)
        b = queue(server, "b")
        while not self.enough.is_set():
            got = await b.reclaim(9, lease=self._lease, max_deliveries=99)
            self.stolen += [lease.task_id for lease in got.leases]
            await asyncio.sleep(self._lease / 20)
        await server.close()

    def __enter__(self) -> Thief:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.enough.set()
        self.join(10)


@pytest.mark.parametrize("fault", ["stall", "cut"])
async def test_one_missed_beat_costs_no_lease_when_the_next_gets_through(
    server: Server, fault: str
) -> None:
    a, lease = await held(server)
    lost: list[Lease] = []
    async with Proxy(server.url) as proxy:
        beat = Heartbeat(proxy.url, lease=LEASE, on_lost=lost.append)
        beat.hold(a, lease)
        beat.start()
        await eventually(lambda: beat.steady, "it beats")
        with Thief(server.url, LEASE) as thief:
            for _ in range(3):
                began = time.monotonic()
                getattr(proxy, fault)()
                await eventually(lambda: beat._steady_since is None, "a beat is missed")
                # Well within the lease: this leaves time for another try.
                assert time.monotonic() - began < LEASE * 0.75
                proxy.heal()
                await eventually(lambda: beat.steady, "it beats again")
        assert (thief.stolen, lost) == ([], [])
        beat.stop()
    await Committer(a).commit(lease, Done(b"{}"))


async def test_a_healthy_job_that_blocks_the_loop_for_ten_leases_keeps_its_lease(
    server: Server,
) -> None:
    lease_time = 0.5
    a, lease = await held(server)
    with beating(server.url, a, lease, lease_time=lease_time):
        with Thief(server.url, lease_time) as thief:
            time.sleep(10 * lease_time)  # a handler that blocks the loop is the point
        assert thief.stolen == []
        await Committer(a).commit(lease, Done(b"{}"))


async def test_a_dead_loop_loses_its_leases_and_one_that_comes_back_beats_again(
    server: Server,
) -> None:
    lease_time = 0.2
    a, lease = await held(server)
    with beating(server.url, a, lease, lease_time=lease_time) as beat:
        with Thief(server.url, lease_time) as thief:
            deadline = time.monotonic() + 20
            while not thief.stolen:  # the loop is dead all the while
                assert time.monotonic() < deadline
                time.sleep(0.05)
        beat.drop(lease)
        await eventually(lambda: beat.steady, "it beats again")


async def test_waiting_for_an_absent_server_is_no_dead_loop(valkey: EmbeddedServer) -> None:
    async with Proxy(valkey.url) as proxy:
        server = Server(proxy.url, patience=60)
        await server.client.flushall()
        a, lease = await held(server)
        with beating(proxy.url, a, lease, lease_time=0.1) as beat:
            proxy.cut()
            waiting = asyncio.create_task(a.take(1))
            await asyncio.sleep(2.0)  # twenty leases in which the main loop does not come round
            assert not beat._loop_dead
            proxy.heal()
            await eventually(lambda: beat.steady, "it beats again")
            await waiting
        await server.close()


async def test_a_cancelled_task_is_reported_as_such_and_stays_ours(server: Server) -> None:
    a, lease = await held(server)
    lost: list[Lease] = []
    cancelled: list[Lease] = []
    loop_thread = threading.get_ident()
    threads: set[int] = set()

    def on_cancelled(which: Lease) -> None:
        threads.add(threading.get_ident())
        cancelled.append(which)

    beat = Heartbeat(server.url, lease=0.3, on_lost=lost.append, on_cancelled=on_cancelled)
    beat.hold(a, lease)
    beat.start()
    await Control(server, "code").cancel("t", Who("a-person@here"))
    await eventually(lambda: bool(cancelled), "the heartbeat tells")
    assert (set(cancelled), lost, threads) == ({lease}, [], {loop_thread})
    beat.drop(lease)
    seen = len(cancelled)
    await eventually(lambda: beat.steady, "some beats more")
    assert len(cancelled) <= seen + 1  # one may have been on its way
    beat.stop()


async def test_cards_and_renewals_go_on_after_flushes_restarts_and_bugs(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    valkey = EmbeddedServer(tmp_path_factory.mktemp("valkey"))
    valkey.start()
    server = Server(valkey.url, patience=30)
    a, lease = await held(server)
    lost: list[Lease] = []
    buggy = False

    def card() -> dict[str, Any]:
        if buggy:
            raise ZeroDivisionError
        return {"running": 1}

    beat = Heartbeat(valkey.url, lease=0.9, on_lost=lost.append, card=card)
    beat.announce(a)
    beat.hold(a, lease)
    beat.start()
    key = Keys("code").card("a")

    async def shown() -> bool:
        raw = await server.persist(lambda: server.client.get(key))
        return bool(raw and orjson.loads(raw) == {"running": 1})

    try:
        await eventually(shown, "a card")
        valkey.kill()
        await eventually(lambda: beat._steady_since is None, "the outage is noticed")
        valkey.start()
        await eventually(shown, "a card after the restart")
        await server.client.delete(key)
        await eventually(shown, "the card again")

        buggy = True
        await server.client.delete(key)
        await eventually(lambda: beat.steady, "a card that cannot be made costs no lease")
        buggy = False
        await eventually(shown, "the card once more")
        assert lost == []

        # Memory is full: the card has to wait, the lease has not.
        await server.client.config_set("maxmemory", 1)
        await eventually(lambda: beat._memory_full, "the card is refused")
        await eventually(lambda: beat.steady, "renewals go through")
        await server.client.config_set("maxmemory", 0)
        assert lost == []

        await server.client.flushall()
        await server.client.function_flush()
        await eventually(lambda: lost == [lease], "what is gone is reported lost")
        await eventually(shown, "a card after the flush")
        assert beat.is_alive()
    finally:
        beat.stop()
        await server.close()
        valkey.stop()


async def test_a_frozen_server_costs_nobody_a_lease(tmp_path: Path) -> None:
    valkey = EmbeddedServer(tmp_path)
    valkey.start()
    server, other = Server(valkey.url, patience=60), Server(valkey.url, patience=60)
    a, lease = await held(server)
    b = queue(other, "b")
    lost: list[Lease] = []
    stolen: list[Lease] = []
    owner = Heartbeat(valkey.url, lease=LEASE, on_lost=lost.append)
    idle = Heartbeat(valkey.url, lease=LEASE, on_lost=lost.append)
    owner.hold(a, lease)
    owner.start()
    idle.start()

    async def take_over() -> None:
        while True:
            if idle.steady:
                got = await b.reclaim(1, lease=LEASE, max_deliveries=9, heard=idle.heard)
                stolen.extend(got.leases)
            await asyncio.sleep(LEASE * 0.15)

    taking = asyncio.create_task(take_over())
    try:
        for _ in range(3):
            await eventually(lambda: owner.steady and idle.steady, "both beat")
            os.kill(valkey.pid, signal.SIGSTOP)
            await asyncio.sleep(1.6 * LEASE)  # a call of `take_over` lies in the server by now
            os.kill(valkey.pid, signal.SIGCONT)
            await eventually(lambda: owner.steady and idle.steady, "both beat again")
        assert not taking.done()
        assert (stolen, lost) == ([], [])
        await Committer(a).commit(lease, Done(b"{}"))
    finally:
        taking.cancel()
        owner.stop()
        idle.stop()
        await server.close()
        await other.close()
        valkey.stop()
