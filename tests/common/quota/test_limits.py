"""Limits of one provider key that many processes share: slots, rates, pauses, and who is next."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from common.queue.connection import Server, ServerGone
from common.queue.embedded import EmbeddedServer
from common.quota import library
from common.quota.gate import Gate
from common.quota.keys import provider_id
from common.quota.terms import Ask, Crowded, Permit
from tests.common.quota.conftest import OpenGate, ask, die, end, line, state
from tests.helpers import eventually


async def test_two_processes_share_one_limit(either: Server) -> None:
    gates = [Gate(either, name) for name in ("a", "b")]
    permits = [await gates[n % 2].admit(ask(), within=5) for n in range(4)]
    waiting = asyncio.create_task(gates[0].admit(ask(), within=20))
    with pytest.raises(TimeoutError):
        await gates[1].admit(ask(), within=0.2)
    assert not waiting.done()
    end(gates[1], permits[1])  # the other process frees the slot
    permits[1] = await waiting
    assert (await state(either))["inflight"] == 4
    for n, permit in enumerate(permits):
        end(gates[0 if n == 1 else n % 2], permit)
    for gate in gates:
        await gate.close()
    assert (await state(either))["inflight"] == 0


async def test_first_come_is_first_served_across_processes(
    server: Server, open_gate: OpenGate
) -> None:
    gates = [open_gate(name) for name in ("a", "b", "c")]
    one = ask(start=1)
    held, owner = await gates[0].admit(one, within=5), gates[0]
    serials: dict[int, int] = {}

    async def caller(number: int) -> tuple[Gate, Permit]:
        permit = await gates[number % 3].admit(one, within=30)
        serials[number] = permit.serial
        return gates[number % 3], permit

    callers = []
    for number in range(12):
        callers.append(asyncio.create_task(caller(number)))
        await eventually(lambda n=number: _waiting(server, n + 1), "it stands in the line")
    for one_caller in callers:
        end(owner, held)
        owner, held = await one_caller
    end(owner, held)
    # Two may be let through at once, to two processes, which hear of it in any order.
    assert [serials[n] for n in range(12)] == sorted(serials.values())


async def test_a_call_answered_with_429_keeps_its_place(
    server: Server, open_gate: OpenGate
) -> None:
    gate, one = open_gate(), ask(start=1)
    first = await gate.admit(one, within=5)
    others = [asyncio.create_task(gate.admit(one, within=20)) for _ in range(3)]
    await eventually(lambda: _waiting(server, 3), "three stand in the line")
    gate.settle(first, "limited", tokens=0, nano_usd=0)
    again = Ask(one.line, one.account, one.tokens, one.nano_usd, first.ticket)
    refused = asyncio.create_task(gate.admit(again, within=20))
    served = []
    for _ in range(4):
        done, _ = await asyncio.wait(
            {refused, *others} - set(served), timeout=20, return_when=asyncio.FIRST_COMPLETED
        )
        (task,) = done
        served.append(task)
        end(gate, task.result())
    # One of the others may have been let through in the very exchange that told of the 429.
    assert served.index(refused) <= 1


async def test_a_killed_process_leaves_no_slot_behind(server: Server, open_gate: OpenGate) -> None:
    victim, heir = open_gate("victim", ttl=0.8), open_gate("heir", ttl=0.8)
    for _ in range(4):
        await victim.admit(ask(), within=5)
    waiting = asyncio.create_task(heir.admit(ask(), within=20))
    await eventually(lambda: _waiting(server, 1), "the heir stands in the line")
    await die(victim)
    end(heir, await waiting)
    await heir.flush()
    assert (await state(server))["inflight"] == 0


async def test_a_dead_process_in_the_line_holds_nobody_up(
    server: Server, open_gate: OpenGate
) -> None:
    holder, victim, heir = (open_gate(name, ttl=0.8) for name in ("holder", "victim", "heir"))
    one = ask(start=1)
    held = await holder.admit(one, within=5)
    lost = asyncio.create_task(victim.admit(one, within=20))
    await eventually(lambda: _waiting(server, 1), "the victim stands in the line")
    waiting = asyncio.create_task(heir.admit(one, within=20))
    await eventually(lambda: _waiting(server, 2), "the heir stands behind it")
    await die(victim)
    end(holder, held)
    end(heir, await waiting)
    lost.cancel()


async def test_a_living_process_keeps_its_slots_however_long_its_calls_take(
    server: Server, open_gate: OpenGate
) -> None:
    owner, other = open_gate("owner", ttl=0.6), open_gate("other", ttl=0.6)
    one = ask(start=1)
    held = await owner.admit(one, within=5)
    with pytest.raises(TimeoutError):
        await other.admit(one, within=2.5)  # four times as long as a slot lives unattended
    end(owner, held)


async def test_a_call_that_gives_up_leaves_the_line(server: Server, open_gate: OpenGate) -> None:
    gate, one = open_gate(), ask(start=1)
    held = await gate.admit(one, within=5)
    with pytest.raises(TimeoutError):
        await gate.admit(one, within=0.1)
    cancelled = asyncio.create_task(gate.admit(one, within=20))
    await eventually(lambda: _waiting(server, 1), "it stands in the line")
    cancelled.cancel()
    await gate.flush()
    await eventually(lambda: _waiting(server, 0), "nobody stands in the line")
    end(gate, held)
    end(gate, await gate.admit(one, within=5))


async def test_a_call_cancelled_while_it_is_let_through_gives_its_slot_back(
    server: Server, open_gate: OpenGate
) -> None:
    gate, rng = open_gate(), random.Random(3)
    for _ in range(60):
        call = asyncio.create_task(gate.admit(ask(), within=5))
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() * 0.002)
        call.cancel()
        done = (await asyncio.gather(call, return_exceptions=True))[0]
        if isinstance(done, Permit):
            end(gate, done)
    await gate.flush()
    await eventually(lambda: _in_flight(server, 0), "every slot is free")


async def test_retry_after_holds_for_every_process(server: Server, open_gate: OpenGate) -> None:
    told, other = open_gate("told"), open_gate("other")
    permit = await told.admit(ask(), within=5)
    told.settle(permit, "limited", tokens=0, nano_usd=0, retry_after=120)
    await told.flush()
    async with asyncio.timeout(5):  # it need not wait to learn that it waits in vain
        with pytest.raises(Crowded) as caught:
            await other.admit(ask(), within=60)
    assert 100 < caught.value.pause <= 120
    another_key = ask(id="p2")
    end(other, await other.admit(another_key, within=5))


async def test_requests_a_minute_are_shared(server: Server, open_gate: OpenGate) -> None:
    gates = [open_gate(name) for name in ("a", "b")]
    one = ask(start=64, rpm=60)  # two at once, then one a second
    for gate in gates:
        end(gate, await gate.admit(one, within=5))
    with pytest.raises(TimeoutError):
        await gates[0].admit(one, within=0.3)
    end(gates[1], await gates[1].admit(one, within=5))


async def test_tokens_a_minute_count_what_was_really_used(
    server: Server, open_gate: OpenGate
) -> None:
    gate = open_gate()
    one = ask(tokens=9_000, start=64, tpm=60_000)  # a bucket of 10,000
    permit = await gate.admit(one, within=5)
    with pytest.raises(TimeoutError):
        await gate.admit(one, within=0.3)
    gate.settle(permit, "ok", tokens=10, nano_usd=0)  # what was reserved too much comes back
    end(gate, await gate.admit(one, within=5))


async def test_a_call_larger_than_the_bucket_is_let_through_once_it_is_full(
    server: Server, open_gate: OpenGate
) -> None:
    gate = open_gate()
    end(gate, await gate.admit(ask(tokens=50_000, tpm=6_000), within=5))


async def test_a_repeated_exchange_changes_nothing(either: Server) -> None:
    row = ["p1", "code", 1, 100, 7, 0]
    batch = (
        b'{"providers":{"p1":[0,0,4]},"free":[],"drop":[],"ask":[%s]}'
        % str(row).replace("'", '"').encode()
    )
    first = await library.call(either, "exchange", ("w", 1, 15_000, batch))
    assert await library.call(either, "exchange", ("w", 1, 15_000, batch)) == first
    assert (await state(either))["inflight"] == 1
    await library.call(either, "exchange", ("w", 2, 15_000, batch))
    assert (await state(either))["inflight"] == 2


async def test_calls_go_on_after_the_server_forgot_everything(
    server: Server, open_gate: OpenGate
) -> None:
    gate, one = open_gate(ttl=0.8), ask(start=1)
    held = await gate.admit(one, within=5)
    waiting = asyncio.create_task(gate.admit(one, within=20))
    await eventually(lambda: _waiting(server, 1), "it stands in the line")
    await server.client.flushall()
    await server.client.function_flush()
    end(gate, await waiting)  # nothing is known of the first any more
    end(gate, held)
    await gate.flush()
    assert (await state(server))["inflight"] == 0


async def test_calls_wait_out_a_restart_of_the_server(tmp_path: Path) -> None:
    valkey = EmbeddedServer(tmp_path)
    valkey.start()
    server = Server(valkey.url, patience=30)
    gate, one = Gate(server, "w"), ask(start=1)
    try:
        held = await gate.admit(one, within=5)
        waiting = asyncio.create_task(gate.admit(one, within=30))
        await eventually(lambda: _waiting(server, 1), "it stands in the line")
        valkey.kill()
        end(gate, held)
        valkey.start()
        end(gate, await waiting)
        await gate.flush()
    finally:
        await gate.close()
        await server.close()
        valkey.stop()


async def test_a_call_given_up_with_the_server_leaves_no_slot_behind(tmp_path: Path) -> None:
    valkey = EmbeddedServer(tmp_path)
    valkey.start()
    server = Server(valkey.url, patience=0.3)
    gate, one = Gate(server, "w"), ask(start=1)
    try:
        end(gate, await gate.admit(one, within=5))
        await gate.flush()
        valkey.kill()
        with pytest.raises(ServerGone):
            await gate.admit(one, within=30)
        valkey.start()
        server.patience = 20
        end(gate, await gate.admit(one, within=20))
        await gate.flush()
        assert (await state(server))["inflight"] == 0
    finally:
        await gate.close()
        await server.close()
        valkey.stop()


async def test_the_hidden_limit_of_a_provider_is_found_from_far_below(
    server: Server, open_gate: OpenGate
) -> None:
    gates, rng = [open_gate(name) for name in ("a", "b")], random.Random(5)
    one, hidden = ask(start=4), 40
    accepted = refused = good = most = 0

    async def caller(gate: Gate) -> None:
        nonlocal accepted, refused, good, most
        while good < 1500:
            permit = await gate.admit(one, within=60)
            if accepted >= hidden:
                refused += 1
                gate.settle(permit, "limited", tokens=0, nano_usd=0)
                continue
            accepted += 1
            most = max(most, accepted)
            await asyncio.sleep(rng.uniform(0.05, 0.15))
            accepted -= 1
            good += 1
            gate.settle(permit, "ok", tokens=50, nano_usd=0)

    await asyncio.gather(*(caller(gates[n % 2]) for n in range(80)))
    found = await state(server)
    assert most == hidden
    assert 36 <= found["ceiling"] <= 44
    assert refused / (refused + good) < 0.02


async def test_a_storm_is_met_with_ever_fewer_requests(server: Server, open_gate: OpenGate) -> None:
    sent = await _storm(open_gate(), ask(start=32), callers=32)
    assert sent < 32 + 40  # at most all that were in flight when it began, then probes


@pytest.mark.parametrize("callers", [1, 4, 11])
async def test_a_key_that_never_worked_is_met_with_ever_fewer_requests(
    server: Server, open_gate: OpenGate, callers: int
) -> None:
    one = ask(start=16)  # fewer callers than slots: no ceiling is ever found
    sent = await _storm(open_gate(), one, callers=callers)
    assert sent < 3 * callers + 10
    assert (await state(server))["strikes"] >= 3


async def test_an_hour_is_the_longest_pause_believed(server: Server, open_gate: OpenGate) -> None:
    gate = open_gate()
    for asked, pause in ((1800.0, 1800), (86_400.0, 3600)):
        await server.client.flushall()
        permit = await gate.admit(ask(), within=5)
        gate.settle(permit, "limited", tokens=0, nano_usd=0, retry_after=asked)
        await gate.flush()
        with pytest.raises(Crowded) as caught:
            await gate.admit(ask(), within=5)
        assert caught.value.pause == pytest.approx(pause, abs=20)
        await gate.flush()  # no answer of this memory is left on its way when the next one begins


def test_a_key_cannot_be_had_back_from_its_id() -> None:
    key = "sk-test-0123456789abcdef"
    id = provider_id("openai", "https://host/v1", key)
    assert key not in id
    assert id != provider_id("openai", "https://host/v1", key + "x")
    assert line(id=id).id == id


async def _waiting(server: Server, count: int) -> bool:
    return int(await server.client.hlen("fleet:{quota}:w:p1")) == count


async def _in_flight(server: Server, count: int) -> bool:
    return (await state(server)).get("inflight") == count


async def _storm(gate: Gate, one: Ask, *, callers: int) -> int:
    """Answer every request of so many callers with 429 for 3 s; return how many were sent."""
    sent = 0

    async def caller() -> None:
        nonlocal sent
        while True:
            permit = await gate.admit(one, within=60)
            sent += 1
            gate.settle(permit, "limited", tokens=0, nano_usd=0)

    tasks = [asyncio.create_task(caller()) for _ in range(callers)]
    await asyncio.wait(tasks, timeout=3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return sent
