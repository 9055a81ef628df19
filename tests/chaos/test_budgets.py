"""Hard budgets over real connections: whatever is in flight, nothing more is spent than that."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from typing import Any

import pytest

from common.llm.client import OpenAIChat
from common.llm.types import Capabilities
from common.metrics import Metrics
from common.queue.connection import Server
from common.queue.control import Who
from common.quota.budgets import BudgetWatch, read_budgets, set_budget
from common.quota.gate import Gate
from common.quota.terms import NANO, BudgetExceeded
from common.task import Assignment, Sampling
from tests.common.llm.conftest import TOOLS, asked, config
from tests.common.quota.provider import HiddenLimit
from tests.helpers import eventually, task
from tests.standin import Script, Standin
from workers.models import Policies

ME = Who("me@here")
PRICES = [(0.1, 0.4), (1.25, 10.0), (15.0, 75.0)]  # USD per million tokens
TYPICAL = {"prompt_tokens": 60, "completion_tokens": 900}
LONG = {"prompt_tokens": 60, "completion_tokens": 20_000}
"""An answer far longer than anybody reserves for one of unknown length."""
CALLS = 40  # the budget pays for about so many


@pytest.mark.parametrize("usage", [TYPICAL, LONG], ids=["typical", "long"])
@pytest.mark.parametrize("concurrency", [1, 8, 64])
@pytest.mark.parametrize("price", PRICES, ids=str)
async def test_overspend_is_at_most_the_calls_in_flight(
    server: Server, price: tuple[float, float], concurrency: int, usage: dict[str, int]
) -> None:
    turn = {"tool": "finish", "arguments": {}, "usage": usage, "delay": 0.01}
    one = usage["prompt_tokens"] * price[0] / 1e6 + usage["completion_tokens"] * price[1] / 1e6
    # One reservation more than what is to be spent: what is left at the end is less than that.
    limit = CALLS * one + 4500 * price[1] / 1e6
    await set_budget(server, ME, usd=limit)
    async with Standin(Script({"*": {"turns": [turn]}}), keep_bodies=False) as standin:
        gates = [Gate(server, name) for name in ("a", "b")]
        models = [_model(standin, gate, price) for gate in gates]
        ended = await asyncio.gather(
            *(_until_refused(models[n % 2], n) for n in range(concurrency))
        )
        for gate, model in zip(gates, models, strict=True):
            await model.close()
            await gate.close()
        made = len(standin.journal)
    assert sum(ended) == made
    found = (await read_budgets(server))["run"]
    assert found.usd.held == 0
    assert found.usd.spent / NANO == pytest.approx(made * one, rel=1e-3)
    assert found.tokens.spent == made * sum(usage.values())
    overspent = found.usd.spent / NANO - limit
    assert overspent <= concurrency * one
    if usage is TYPICAL:  # no answer longer than reserved: the limit holds to the cent
        assert overspent <= 0
        assert made >= CALLS - 1  # and what is left is too little for one more


async def test_a_budget_survives_the_killing_of_those_who_spend_it(server: Server) -> None:
    limit = 0.5
    await set_budget(server, ME, usd=limit)
    async with HiddenLimit(1000, latency=(0.2, 0.3)) as provider:

        async def run(seconds: float) -> asyncio.subprocess.Process:
            argv = ("-m", "tests.common.quota.caller", provider.url, server.url, 4, seconds, 1.0)
            return await asyncio.create_subprocess_exec(
                sys.executable, *map(str, argv), stdout=PIPE
            )

        victim = await run(60)
        await eventually(lambda: provider.in_flight == 4, "four calls are in flight", within=30)
        victim.kill()
        await victim.wait()
        resumed = await run(3)
        await resumed.communicate()
        found = (await read_budgets(server))["run"]
        assert found.usd.held == 0
        # 20 prompt and 2 answer tokens at 1 and 4 USD a million, as the provider counts.
        paid = len(provider.arrived) * (20 * 1 + 2 * 4) / 1e6
        assert found.usd.spent / NANO >= paid  # never less than what was really paid
        assert found.usd.spent / NANO <= limit


async def test_what_ended_for_want_of_budget_can_be_resumed(server: Server) -> None:
    turn = {"tool": "finish", "arguments": {}, "usage": TYPICAL}
    await set_budget(server, ME, scene="code", tokens=6000)
    async with Standin(Script({"*": {"turns": [turn]}})) as standin:
        gate = Gate(server, "w")
        model = _model(standin, gate, PRICES[0])
        assert await _until_refused(model, 0) == 2
        await set_budget(server, ME, scene="code", tokens=9000)
        assert await _until_refused(model, 0) > 0
        await model.close()
        await gate.close()


def _model(standin: Standin, gate: Gate, price: tuple[float, float]) -> OpenAIChat:
    fields: dict[str, Any] = {"capabilities": Capabilities(tool_mode="native", price=price)}
    return OpenAIChat(config(standin.url, **fields), gate=gate)


async def _until_refused(model: OpenAIChat, number: int) -> int:
    """Call until the budget ends it; returns how often."""
    made = 0
    while True:
        try:
            await model.complete(
                asked(f"t{number}"), TOOLS, Sampling(), deadline=30, account="code"
            )
        except BudgetExceeded:
            return made
        made += 1


async def test_no_episode_starts_when_nothing_is_left(server: Server) -> None:
    await set_budget(server, ME, scene="code", usd=0)
    gate, watch = Gate(server, "w"), BudgetWatch(server)
    priced = Capabilities(tool_mode="native", price=PRICES[0])
    model = OpenAIChat(config("http://127.0.0.1:1/v1", capabilities=priced), gate=gate, watch=watch)
    policies = Policies([model], deadline=10, metrics=Metrics())
    unit = Assignment(task=task())
    await watch.start()
    with pytest.raises(BudgetExceeded, match="budget of scene code"):
        policies(unit, attempt_id="a1")
    await set_budget(server, ME, scene="code", usd=1)
    await watch.look()
    assert policies(unit, attempt_id="a1").agent.provider == "custom"
    await watch.close()
    await gate.close()
    await model.close()
