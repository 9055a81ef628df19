"""Many processes and one provider that says nothing of its limits: found, and kept."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from asyncio.subprocess import PIPE, Process
from itertools import pairwise

import pytest

from common.queue.connection import Server
from tests.common.quota.provider import HiddenLimit
from tests.helpers import eventually

PROCESSES = 3
CALLERS = 32
HIDDEN = 40


async def start(provider: HiddenLimit, server: Server, seconds: float) -> list[Process]:
    """Start processes that want more than twice as many calls in flight as there may be."""
    argv = ("-m", "tests.common.quota.caller", provider.url, server.url, CALLERS, seconds, 15)
    return [
        await asyncio.create_subprocess_exec(sys.executable, *map(str, argv), stdout=PIPE)
        for _ in range(PROCESSES)
    ]


async def endings(processes: list[Process]) -> dict[str, int]:
    """How the calls of all processes ended."""
    total: dict[str, int] = {}
    for process in processes:
        said, _ = await process.communicate()
        assert process.returncode == 0
        for kind, count in json.loads(said).items():
            total[kind] = total.get(kind, 0) + count
    return total


async def test_a_hidden_limit_is_found(server: Server) -> None:
    async with HiddenLimit(HIDDEN, latency=(0.5, 1.5)) as provider:
        processes = await start(provider, server, 12)
        await eventually(lambda: bool(provider.arrived), "the first call arrives", within=60)
        began = provider.arrived[0]
        assert set(await endings(processes)) == {"ok"}
        (key,) = [key async for key in server.client.scan_iter("fleet:{quota}:p:*")]
        found = float(await server.client.hget(key, "ceiling"))
        assert 0.9 * HIDDEN <= found <= 1.1 * HIDDEN
        # The start costs a handful; how much that is of so short a run says nothing.
        assert provider.refusals(began + 4) < 0.02
        assert len(provider.refused) < HIDDEN


@pytest.mark.chaos
async def test_a_hidden_limit_is_found_within_a_minute_and_kept(server: Server) -> None:
    async with HiddenLimit(HIDDEN, latency=(1.0, 3.0)) as provider:
        processes = await start(provider, server, 70)
        await eventually(lambda: bool(provider.arrived), "the first call arrives", within=60)
        began = provider.arrived[0]
        assert set(await endings(processes)) == {"ok"}
        mean = provider.mean_in_flight(began + 10, began + 60)
        print(f"mean in flight {mean:.1f}, 429s {provider.refusals():.2%}")
        assert 0.9 * HIDDEN <= mean <= 1.1 * HIDDEN
        assert provider.refusals() < 0.02  # of all answers, the start included


@pytest.mark.parametrize("storm", [4, pytest.param(300, marks=pytest.mark.chaos)])
async def test_a_storm_of_429_costs_no_call(server: Server, storm: float) -> None:
    async with HiddenLimit(HIDDEN, latency=(0.1, 0.3)) as provider:
        processes = await start(provider, server, storm + 10)
        await eventually(lambda: len(provider.answered) > 200, "calls flow", within=60)
        provider.storm = True
        began, before = time.monotonic(), len(provider.refused)
        await asyncio.sleep(storm)
        probes = len(provider.refused) - before
        provider.storm, answered = False, len(provider.answered)
        await eventually(
            lambda: len(provider.answered) > answered + 200, "calls flow again", within=60
        )
        found = await endings(processes)
        assert set(found) == {"ok"}
        print(f"{probes} requests in {storm} s of storm")
        # Some for each call in flight on the way down, then at most about one probe a second;
        # without a brake it would be hundreds a second.
        assert probes <= 3 * HIDDEN + storm
        assert time.monotonic() - began < storm + 100


async def test_retry_after_is_kept_by_every_process(server: Server) -> None:
    async with HiddenLimit(HIDDEN, latency=(0.1, 0.2), retry_after=3.0) as provider:
        processes = await start(provider, server, 8)
        await eventually(lambda: len(provider.answered) > 100, "calls flow", within=60)
        provider.storm = True
        refused = len(provider.refused)
        await eventually(lambda: len(provider.refused) > refused, "one is refused")
        provider.storm = False
        assert set(await endings(processes)) == {"ok"}
        # Nothing goes out between the moment a refusal is told and the end of the pause.
        arrivals = sorted(provider.arrived)
        gaps = [then - at for at, then in pairwise(arrivals)]
        assert max(gaps) >= 2.5
