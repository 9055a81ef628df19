"""Hard budgets: reserved before a call, settled after it, and never lost with a killed process."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from common.queue.connection import Server
from common.queue.control import AUDIT
from common.quota import library
from common.quota.budgets import (
    Budget,
    BudgetWatch,
    apply_budgets,
    clear_budget,
    read_budgets,
    set_budget,
)
from common.quota.gate import Gate
from common.quota.terms import NANO, BudgetExceeded, Unpriced
from tests.common.quota.conftest import ME, OpenGate, ask, die, end, state, used
from tests.helpers import entries_of, eventually

CENT = NANO // 100


async def budget(server: Server, scope: str = "run") -> Budget:
    return (await read_budgets(server))[scope]


async def test_a_call_is_reserved_before_and_settled_after(either: Server) -> None:
    await set_budget(either, ME, usd=1.0)
    gate = Gate(either, "w")
    permit = await gate.admit(ask(nano_usd=10 * CENT, tokens=1000), within=5)
    before = await budget(either)
    assert (before.usd.held, before.usd.spent, before.tokens.held) == (10 * CENT, 0, 1000)
    gate.settle(permit, "ok", tokens=300, nano_usd=3 * CENT)
    await gate.close()
    after = await budget(either)
    assert (after.usd.held, after.usd.spent, after.tokens.spent) == (0, 3 * CENT, 300)
    assert (await budget(either, "scene:code")).usd.spent == 3 * CENT


async def test_what_is_exhausted_is_refused_at_once_and_says_how_to_raise_it(
    server: Server, open_gate: OpenGate
) -> None:
    await set_budget(server, ME, scene="code", usd=0.10)
    gate, one = open_gate(), ask(nano_usd=4 * CENT)
    for _ in range(2):
        await used(gate, one, nano=4 * CENT)
    with pytest.raises(BudgetExceeded) as caught:
        await gate.admit(one, within=60)
    assert caught.value.kind == "budget_exceeded"
    for word in ("scene code", "0.08 USD", "0.10 USD", "fleet budget set --scene code --usd"):
        assert word in str(caught.value)
    end(gate, await gate.admit(ask("web", nano_usd=4 * CENT), within=5))  # another scene's money


async def test_a_budget_of_the_run_holds_for_all_scenes(
    server: Server, open_gate: OpenGate
) -> None:
    await set_budget(server, ME, tokens=250)
    gate = open_gate()
    await used(gate, ask("code"))
    await used(gate, ask("web"))
    with pytest.raises(BudgetExceeded, match=r"budget of the run .* 200 tokens of 250 tokens"):
        await gate.admit(ask("gui"), within=5)


async def test_a_call_waits_while_others_may_give_back_what_they_reserved(
    server: Server, open_gate: OpenGate
) -> None:
    await set_budget(server, ME, usd=1.0)
    gate, other = open_gate(), open_gate("other")
    big = ask(nano_usd=60 * CENT)
    held = await gate.admit(big, within=5)
    waiting = asyncio.create_task(other.admit(big, within=20))
    await eventually(lambda: _is_waiting(server), "it waits")
    gate.settle(held, "ok", tokens=1, nano_usd=1 * CENT)
    end(other, await waiting)


async def test_a_scene_that_waits_for_its_budget_does_not_hold_up_the_others(
    server: Server, open_gate: OpenGate
) -> None:
    await set_budget(server, ME, scene="code", usd=1.0)
    gate, big = open_gate(), ask(nano_usd=60 * CENT)
    held = await gate.admit(big, within=5)
    waiting = asyncio.create_task(gate.admit(big, within=20))
    await eventually(lambda: _is_waiting(server), "it waits")
    end(gate, await gate.admit(ask("web", nano_usd=60 * CENT), within=5))
    assert not waiting.done()
    end(gate, held)
    end(gate, await waiting)


async def test_a_raised_budget_lets_calls_go_on(server: Server, open_gate: OpenGate) -> None:
    await set_budget(server, ME, usd=0.01)
    gate, one = open_gate(), ask(nano_usd=CENT)
    await used(gate, one, nano=CENT)
    with pytest.raises(BudgetExceeded):
        await gate.admit(one, within=5)
    await set_budget(server, ME, usd=0.02)
    end(gate, await gate.admit(one, within=5))
    await clear_budget(server, ME)
    end(gate, await gate.admit(one, within=5))


async def test_a_killed_processs_calls_are_taken_as_paid(
    server: Server, open_gate: OpenGate
) -> None:
    victim, other = open_gate("victim", ttl=0.8), open_gate("other", ttl=0.8)
    for _ in range(3):
        await victim.admit(ask(nano_usd=2 * CENT, tokens=100), within=5)
    await die(victim)

    async def lapsed() -> bool:
        await used(other, ask("web"), tokens=0)
        return (await budget(server)).usd.held == 0

    await eventually(lapsed, "what it reserved is spent")
    found = await budget(server, "scene:code")
    assert (found.usd.spent, found.usd.held) == (6 * CENT, 0)
    assert (found.tokens.spent, found.tokens.held) == (300, 0)


async def test_a_process_that_was_only_silent_settles_to_the_cent(
    server: Server, open_gate: OpenGate
) -> None:
    silent, other = open_gate("silent", ttl=0.8), open_gate("other", ttl=0.8)
    permits = [await silent.admit(ask(nano_usd=5 * CENT), within=5) for _ in range(2)]
    await die(silent)

    async def lapsed() -> bool:
        await used(other, ask("web"), tokens=0)
        return (await budget(server, "scene:code")).usd.spent == 10 * CENT

    await eventually(lapsed, "what it reserved is spent")
    for permit in permits:
        silent.settle(permit, "ok", tokens=10, nano_usd=2 * CENT)
    await silent.flush()
    found = await budget(server, "scene:code")
    assert (found.usd.spent, found.usd.held, found.tokens.spent) == (4 * CENT, 0, 20)
    end(silent, await silent.admit(ask(), within=5))


async def test_a_budget_in_dollars_refuses_a_model_without_a_price(
    server: Server, open_gate: OpenGate
) -> None:
    gate, unpriced = open_gate(), ask(nano_usd=-1)
    await used(gate, unpriced)
    await set_budget(server, ME, scene="code", usd=100)
    with pytest.raises(Unpriced, match="scene:code"):
        await gate.admit(unpriced, within=5)
    assert (await budget(server)).tokens.spent == 100


async def test_a_free_model_is_not_stopped_by_dollars_but_counts_tokens(
    server: Server, open_gate: OpenGate
) -> None:
    await set_budget(server, ME, usd=0, tokens=1000)
    gate = open_gate()
    for _ in range(10):
        await used(gate, ask(nano_usd=0))
    with pytest.raises(BudgetExceeded, match="1,000 tokens of 1,000 tokens"):
        await gate.admit(ask(nano_usd=0), within=5)


async def test_every_change_is_in_the_audit(server: Server) -> None:
    await set_budget(server, ME, usd=5, tokens=7)
    await set_budget(server, ME, scene="code", usd=1.5)
    await clear_budget(server, ME, scene="code")
    rows = await entries_of(server, AUDIT)
    assert [(row["by"], row["action"], row["target"]) for row in rows] == [
        ("me@here", "budget.set", "run"),
        ("me@here", "budget.set", "scene:code"),
        ("me@here", "budget.clear", "scene:code"),
    ]
    assert orjson.loads(rows[0]["detail"]) == {"usd": 5, "tokens": 7}


async def test_settings_are_applied_once(server: Server) -> None:
    for _ in range(2):
        await apply_budgets(server, ME, usd=2.5, tokens=None)
    assert len(await entries_of(server, AUDIT)) == 1
    await apply_budgets(server, ME, usd=2.5, tokens=10)
    found = await budget(server)
    assert (found.usd.limit, found.tokens.limit) == (2_500_000_000, 10)
    await apply_budgets(server, ME, usd=None, tokens=None)  # says nothing: changes nothing
    assert (await budget(server)).usd.limit == 2_500_000_000


async def test_clearing_may_count_from_nothing_again(server: Server, open_gate: OpenGate) -> None:
    await used(open_gate(), ask(nano_usd=CENT), nano=CENT)
    await clear_budget(server, ME, spent=True)
    found = await budget(server)
    assert (found.usd.spent, found.tokens.spent, found.usd.limit) == (0, 0, None)


async def _is_waiting(server: Server) -> bool:
    return bool(await server.client.hlen("fleet:{quota}:w:p1"))


async def test_a_flushed_server_is_told_its_budgets_again(
    server: Server, open_gate: OpenGate
) -> None:
    await set_budget(server, ME, tokens=1000)
    gate = open_gate()
    await used(gate, ask(tokens=400), tokens=400)
    watches = [BudgetWatch(server), BudgetWatch(server)]
    for watch in watches:
        await watch.look()
    await server.client.flushall()
    for watch in watches:
        await watch.look()
    run = (await read_budgets(server))["run"]
    assert (run.tokens.limit, run.tokens.spent) == (1000, 400)
    with pytest.raises(BudgetExceeded):
        await gate.admit(ask(tokens=700), within=10)


async def test_a_flush_under_load_takes_no_budget_away(server: Server, open_gate: OpenGate) -> None:
    await set_budget(server, ME, tokens=1000)
    await set_budget(server, ME, scene="code", usd=1.0)
    gate = open_gate()
    await used(gate, ask(tokens=400), tokens=400)
    held = await gate.admit(ask(tokens=100), within=5)
    watches = [BudgetWatch(server), BudgetWatch(server)]
    for watch in watches:
        await watch.look()
    await server.client.flushall()
    await used(open_gate("other"), ask(), tokens=30)  # makes the scopes anew, without limits
    for watch in watches * 2:
        await watch.look()
    found = await read_budgets(server)
    assert (found["run"].tokens.limit, found["run"].tokens.spent) == (1000, 400 + 100 + 30)
    assert found["scene:code"].usd.limit == NANO
    # Nobody knows whether it was reserved when last looked: nothing is given back for it.
    gate.settle(held, "ok", tokens=60, nano_usd=0)
    await gate.flush()
    assert (await budget(server)).tokens.spent == 530 + 60
    with pytest.raises(BudgetExceeded):
        await gate.admit(ask(tokens=700), within=10)


async def test_nothing_is_let_through_between_a_flush_and_the_return_of_the_budgets(
    server: Server, open_gate: OpenGate
) -> None:
    await set_budget(server, ME, tokens=500)
    gate, watch = open_gate(), BudgetWatch(server)
    gate.before_new_memory(watch.look)
    await used(gate, ask(tokens=400), tokens=400)
    await watch.look()
    for _ in range(3):
        await server.client.flushall()
        with pytest.raises(BudgetExceeded, match="400 tokens of 500 tokens"):
            await gate.admit(ask(tokens=200), within=10)


async def test_a_limit_set_after_a_flush_holds_and_what_was_spent_comes_back(
    server: Server, open_gate: OpenGate
) -> None:
    await set_budget(server, ME, tokens=1000)
    await used(open_gate(), ask(tokens=400), tokens=400)
    watch = BudgetWatch(server)
    await watch.look()
    await server.client.flushall()
    await set_budget(server, ME, tokens=2000)
    await watch.look()
    found = await read_budgets(server)
    assert (found["run"].tokens.limit, found["run"].tokens.spent) == (2000, 400)
    assert found["scene:code"].tokens.spent == 400  # never had a limit


async def test_a_call_let_through_to_a_dead_process_is_not_spent(
    server: Server, open_gate: OpenGate
) -> None:
    holder, victim = open_gate("holder", ttl=0.8), open_gate("victim", ttl=0.8)
    one = ask(start=1, nano_usd=CENT)
    held = await holder.admit(one, within=5)
    waiting = asyncio.create_task(victim.admit(one, within=20))
    await eventually(lambda: _is_waiting(server), "it waits")
    await die(victim)
    holder.settle(held, "ok", tokens=0, nano_usd=0)  # the victim is let through, and never hears
    await holder.flush()
    assert (await budget(server)).usd.held == CENT

    async def lapsed() -> bool:
        await used(holder, ask("web"), tokens=0)
        return (await budget(server)).usd.held == 0

    await eventually(lapsed, "it lapses")
    found = await budget(server, "scene:code")
    assert (found.usd.spent, found.tokens.spent) == (0, 0)
    waiting.cancel()


async def test_calls_are_those_that_were_answered(server: Server, open_gate: OpenGate) -> None:
    gate = open_gate()
    for verdict in ("ok", "limited", "failed", "ok"):
        await used(gate, ask(), verdict=verdict, tokens=0)
    assert (await budget(server)).calls == 2
    assert (await budget(server, "scene:code")).calls == 2


async def test_absurd_numbers_lose_no_settlement(server: Server, open_gate: OpenGate) -> None:
    gate = open_gate()
    permits = [await gate.admit(ask(), within=5) for _ in range(3)]
    gate.settle(permits[0], "ok", tokens=2**64 - 1, nano_usd=2**70)
    gate.settle(permits[1], "limited", tokens=0, nano_usd=-5, retry_after=float("inf"))
    gate.settle(permits[2], "limited", tokens=0, nano_usd=0, retry_after=float("nan"))
    await gate.flush()
    found = await budget(server)
    assert (found.tokens.held, found.calls) == (0, 1)
    assert (await state(server))["inflight"] == 0


async def test_settlements_survive_an_exchange_that_fails(
    server: Server, open_gate: OpenGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = open_gate()
    permit = await gate.admit(ask(), within=5)
    whole = library.call
    failures = 2

    async def call(*args: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise ValueError("out of the blue")
        return await whole(*args)

    monkeypatch.setattr(library, "call", call)
    gate.settle(permit, "ok", tokens=7, nano_usd=0)
    async with asyncio.timeout(10):
        await gate.flush()
    found = await budget(server)
    assert (found.tokens.held, found.tokens.spent) == (0, 7)


async def test_what_cannot_be_said_fails_the_call_and_no_other(open_gate: OpenGate) -> None:
    gate = open_gate()
    held = await gate.admit(ask(), within=5)
    end(gate, held)
    with pytest.raises(TypeError):
        await gate.admit(ask(tokens=2**70), within=5)
    async with asyncio.timeout(10):
        await gate.flush()
        end(gate, await gate.admit(ask(), within=5))


async def test_a_call_is_let_through_when_memory_is_full(
    server: Server, open_gate: OpenGate
) -> None:
    gate = open_gate()
    await used(gate, ask())
    await server.client.config_set("maxmemory", 1)
    try:
        await used(gate, ask())
    finally:
        await server.client.config_set("maxmemory", 0)
