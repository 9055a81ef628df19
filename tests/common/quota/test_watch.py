"""What a process knows of budgets without asking: seen a second ago, shown, and never made up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.metrics import Metrics
from common.queue.connection import Server
from common.quota import budgets
from common.quota.budgets import BudgetWatch, set_budget
from common.quota.terms import NANO, BudgetExceeded
from tests.common.quota.conftest import ME, OpenGate, ask, used
from tests.helpers import eventually

CENT = NANO // 100


async def test_a_watch_knows_what_is_exhausted_and_shows_it(
    server: Server, open_gate: OpenGate
) -> None:
    metrics = Metrics()
    watch = BudgetWatch(server, metrics=metrics)
    assert watch.objection("code", free=False) is None  # nothing seen yet: the call will ask
    gate, one = open_gate(), ask(nano_usd=4 * CENT)
    await set_budget(server, ME, scene="code", usd=0.10)
    await used(gate, one, nano=4 * CENT)
    await watch.look()
    assert watch.objection("code", free=False) is None
    await used(gate, one, nano=4 * CENT)
    await watch.look()
    objection = watch.objection("code", free=False)
    assert objection is not None
    assert "scene code" in str(objection)
    assert watch.objection("code", free=True) is None
    assert watch.objection("web", free=False) is None
    sample = metrics.registry.get_sample_value
    assert sample("fleet_budget_spent_usd", {"scope": "scene:code"}) == pytest.approx(0.08)
    assert sample("fleet_budget_limit_usd", {"scope": "scene:code"}) == pytest.approx(0.10)
    assert sample("fleet_budget_spent_tokens", {"scope": "run"}) == 200


async def test_one_call_that_asks_for_too_much_closes_the_budget_for_nobody(
    server: Server, open_gate: OpenGate
) -> None:
    await set_budget(server, ME, usd=1.0)
    gate, watch = open_gate(), BudgetWatch(server)
    await used(gate, ask(nano_usd=CENT), nano=CENT)
    with pytest.raises(BudgetExceeded):
        await gate.admit(ask(nano_usd=500 * CENT), within=5)
    await watch.look()
    assert watch.objection("code", free=False) is None
    await used(gate, ask(nano_usd=CENT), nano=CENT)


async def test_a_small_call_of_no_scene_does_not_keep_a_budget_open(
    server: Server, open_gate: OpenGate
) -> None:
    await set_budget(server, ME, tokens=5000)
    gate, watch = open_gate(), BudgetWatch(server)
    await used(gate, ask("", tokens=90), tokens=20)  # as a worker checks its key at the start
    await used(gate, ask("code", tokens=3000), tokens=3000)
    await watch.look()
    objection = watch.objection("code", free=True)
    assert objection is not None
    assert "may take up to 3,000 tokens" in str(objection)


async def test_a_watch_knows_which_budget_is_in_dollars(server: Server) -> None:
    watch = BudgetWatch(server)
    await set_budget(server, ME, tokens=5)
    await set_budget(server, ME, scene="code", usd=0)
    assert watch.in_dollars("code") is None  # nothing seen yet
    await watch.look()
    assert watch.in_dollars("code") == "scene:code"
    assert watch.in_dollars("web") is None
    await set_budget(server, ME, usd=5)
    await watch.look()
    assert watch.in_dollars("web") == "run"


async def test_a_watch_that_sees_nothing_says_so_once_and_when_it_is_over(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budgets, "_LOOK", 0.01)
    whole, broken, looks = budgets._read, False, 0

    async def read(server: Server) -> Any:
        nonlocal looks
        looks += 1
        if broken:
            raise ValueError("out of the blue")
        return await whole(server)

    async def look_on(*, blind: bool) -> None:
        nonlocal broken
        broken, seen = blind, looks
        await eventually(lambda: looks > seen + 3, "it looks again and again")

    monkeypatch.setattr(budgets, "_read", read)
    watch = BudgetWatch(server)
    with capture_logs() as logs:
        await watch.start()
        for blind in (False, True, False, True):
            await look_on(blind=blind)
        await watch.close()
    said = [(one["event"], one["log_level"]) for one in logs]
    lost, back = ("budget.unseen", "warning"), ("budget.seen_again", "info")
    assert said == [lost, back, lost]
    assert "out of the blue" in logs[0]["error"]


async def test_a_watch_ends_though_a_look_swallows_its_cancellation(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = BudgetWatch(server)
    monkeypatch.setattr(budgets, "_LOOK", 0.0)
    await watch.start()
    looking = asyncio.Event()

    async def look() -> None:  # as one over redis-py does on Python 3.11, in the wrong moment
        looking.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return

    monkeypatch.setattr(watch, "look", look)
    await looking.wait()
    async with asyncio.timeout(20):
        await watch.close()
