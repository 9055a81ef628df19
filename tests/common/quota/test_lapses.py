"""What silent processes held, and what a server remembers of it after it lost its last writes."""

from __future__ import annotations

import asyncio

import redis

from common.queue.connection import Server
from common.quota.budgets import Amounts, read_budgets, set_budget
from common.quota.gate import Gate
from tests.common.quota.conftest import ME, OpenGate, ask, copied, die, fail_over, state, used
from tests.helpers import eventually


async def tokens(server: Server, scope: str = "run") -> Amounts:
    return (await read_budgets(server))[scope].tokens


async def lapsed(server: Server, survivor: Gate, victim: Gate) -> None:
    """Return once nothing is left of what a silent process held."""

    async def gone() -> bool:
        await used(survivor, ask("web", tokens=1), tokens=0)
        return not await server.client.exists(f"fleet:{{quota}}:h:{victim._process}")

    await eventually(gone, "it lapses")


async def test_a_refusal_that_a_dead_process_never_read_stops_nobody(
    server: Server, open_gate: OpenGate
) -> None:
    holder, victim = open_gate("holder"), open_gate("victim", ttl=1.0)
    one = ask(start=1)
    await set_budget(server, ME, tokens=250)
    held = await holder.admit(one, within=5)
    waiting = asyncio.create_task(victim.admit(one, within=20))
    await eventually(lambda: server.client.hlen("fleet:{quota}:w:p1"), "it waits")
    await die(victim)
    holder.settle(held, "ok", tokens=200, nano_usd=0)  # too little is left for the victim
    await holder.flush()
    (told,) = await server.client.lrange(f"fleet:{{quota}}:in:{victim._process}", 0, -1)
    assert b'"over"' in told
    await lapsed(server, holder, victim)
    assert ((await tokens(server)).spent, (await state(server))["inflight"]) == (200, 0)
    waiting.cancel()


async def test_an_exchange_that_fails_loses_nothing_of_what_lapsed_in_it(
    server: Server, open_gate: OpenGate
) -> None:
    first, second = open_gate("first", ttl=0.5), open_gate("second", ttl=0.6)
    for victim in (first, second):
        await victim.admit(ask(), within=5)
        await die(victim)
    unreadable = f"fleet:{{quota}}:in:{second._process}"
    await server.client.rpush(unreadable, "{")
    survivor = open_gate("survivor")

    async def both_are_late() -> bool:
        seconds, _ = await server.client.time()
        return await server.client.zcount("fleet:{quota}:live", "-inf", seconds * 1000) == 2

    async def failed() -> bool:
        try:
            await used(survivor, ask("web", tokens=1), tokens=0)
        except redis.exceptions.ResponseError:
            return True
        return False

    await eventually(both_are_late, "both can lapse")
    await eventually(failed, "they lapse in a call that fails")
    await server.client.delete(unreadable)
    for victim in (first, second):
        await lapsed(server, survivor, victim)
    found = await tokens(server, "scene:code")
    assert (found.spent, found.held, (await state(server))["inflight"]) == (200, 0, 0)


async def test_calls_a_fail_over_forgot_free_nothing_of_others(
    server: Server, open_gate: OpenGate
) -> None:
    gate, other = open_gate("gate"), open_gate("other")
    await gate.admit(ask(tokens=1), within=5)
    await other.admit(ask(tokens=500), within=5)
    copy = await copied(server)
    permits = [await gate.admit(ask(tokens=300), within=5) for _ in range(2)]
    await fail_over(server, copy)
    for permit in permits:
        gate.settle(permit, "ok", tokens=50, nano_usd=0)
    await gate.flush()
    found = await tokens(server)
    assert (found.spent, found.held) == (100, 500)
    assert (await state(server))["inflight"] == 1


async def test_calls_a_fail_over_forgot_take_no_slot_and_no_budget_with_them(
    server: Server, open_gate: OpenGate
) -> None:
    victim, survivor = open_gate("victim", ttl=1.5), open_gate("survivor")
    await set_budget(server, ME, tokens=1000)
    await used(victim, ask())
    held = await victim.admit(ask(), within=5)
    copy = await copied(server)
    permits = [await victim.admit(ask(tokens=200), within=5) for _ in range(3)]
    await fail_over(server, copy)
    for permit in (*permits, held):
        victim.settle(permit, "ok", tokens=5, nano_usd=0)
    await victim.flush()
    assert ((await tokens(server)).spent, (await tokens(server)).held) == (120, 0)
    await victim.admit(ask(tokens=150), within=5)  # is let through by the new server, and paid
    await die(victim)
    await lapsed(server, survivor, victim)
    found = await tokens(server)
    assert (found.spent, found.held, (await state(server))["inflight"]) == (270, 0, 0)


async def test_calls_of_a_process_a_fail_over_forgot_are_paid(
    server: Server, open_gate: OpenGate
) -> None:
    await used(open_gate("before"), ask(tokens=5000), tokens=5000)
    copy, gate = await copied(server), open_gate("gate")
    permits = [await gate.admit(ask(tokens=1000), within=5) for _ in range(3)]
    await fail_over(server, copy)
    for permit in permits:
        gate.settle(permit, "ok", tokens=900, nano_usd=0)
    await gate.flush()
    found = await tokens(server)
    assert (found.spent, found.held) == (5000 + 2700, 0)


async def test_only_what_a_lapse_counted_is_given_back(server: Server, open_gate: OpenGate) -> None:
    silent, survivor = open_gate("silent", ttl=1.5), open_gate("survivor")
    permits = [await silent.admit(ask(tokens=1000), within=5)]
    copy = await copied(server)
    permits += [await silent.admit(ask(tokens=1000), within=5) for _ in range(2)]
    await die(silent)
    await fail_over(server, copy)
    await lapsed(server, survivor, silent)
    assert (await tokens(server, "scene:code")).spent == 1000
    for permit in permits:
        silent.settle(permit, "ok", tokens=900, nano_usd=0)
    await silent.flush()
    found = await tokens(server, "scene:code")
    assert (found.spent, found.held) == (2700, 0)


async def test_a_lapse_is_remembered_for_an_hour(server: Server, open_gate: OpenGate) -> None:
    victim, idle, survivor = (open_gate(name, ttl=0.5) for name in ("victim", "idle", "survivor"))
    await victim.admit(ask(), within=5)
    await used(idle, ask())
    for silent in (victim, idle):
        await die(silent)
        await lapsed(server, survivor, silent)
    (record,) = await server.client.keys("fleet:{quota}:l:*")
    assert victim._process.encode() in record
    assert 0 < await server.client.pttl(record) <= 3_600_000
