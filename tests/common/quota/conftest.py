"""Gates over real servers, and short ways to say what is asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from common.queue.connection import Server
from common.queue.control import Who
from common.quota.gate import Gate
from common.quota.terms import Ask, Line, Permit

ME = Who("me@here")
OpenGate = Callable[..., Gate]


def line(**fields: Any) -> Line:
    return Line(**{"id": "p1", "name": "custom", "start": 4, **fields})


def ask(account: str = "code", *, tokens: int = 100, nano_usd: int = 0, **fields: Any) -> Ask:
    return Ask(line(**fields), account, tokens, nano_usd)


async def used(
    gate: Gate, of: Ask, *, verdict: Any = "ok", tokens: int = 100, nano: int = 0
) -> None:
    """Make one call through the gate that takes no time."""
    permit = await gate.admit(of, within=10)
    gate.settle(permit, verdict, tokens=tokens, nano_usd=nano)
    await gate.flush()


async def state(server: Server, provider: str = "p1") -> dict[str, float]:
    """What the server knows of a provider."""
    rows = await server.client.hgetall(f"fleet:{{quota}}:p:{provider}")
    return {name.decode(): float(value) for name, value in rows.items()}


@pytest.fixture
async def open_gate(server: Server) -> AsyncIterator[OpenGate]:
    """Make gates of the server, each as a process of its own would have."""
    gates: list[Gate] = []

    def make(name: str = "w", **options: Any) -> Gate:
        gates.append(Gate(options.pop("server", server), name, **options))
        return gates[-1]

    yield make
    for gate in gates:
        await gate.close()


def end(gate: Gate, permit: Permit) -> None:
    gate.settle(permit, "ok", tokens=0, nano_usd=0)


async def die(gate: Gate) -> None:
    """Fall silent as a killed or stopped process does."""
    tasks = [task for task in (gate._pump, gate._ear) if task is not None]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def copied(server: Server) -> dict[bytes, bytes]:
    """What a replica has got so far."""
    return {key: await server.client.dump(key) for key in await server.client.keys("*")}


async def fail_over(server: Server, copy: dict[bytes, bytes]) -> None:
    """Go on with a replica that had not got the last writes."""
    async with server.client.pipeline(transaction=True) as change:
        change.flushdb()
        for key, value in copy.items():
            change.restore(key, 0, value)
        await change.execute()
