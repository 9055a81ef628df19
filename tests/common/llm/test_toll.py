"""Model calls through the gate of the fleet: what they reserve, pay, wait for and are refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from common.llm.client import OpenAIChat
from common.llm.cost import estimate, is_free, nano
from common.llm.faults import of_status, retry_after
from common.llm.http import Answer, Pool
from common.llm.toll import _is_unpaid
from common.llm.types import (
    Capabilities,
    ModelRateLimited,
    ModelRefused,
    ModelUnavailable,
)
from common.metrics import Metrics
from common.queue.connection import Server
from common.queue.control import Who
from common.quota.budgets import Budget, BudgetWatch, read_budgets, set_budget
from common.quota.gate import Gate
from common.quota.terms import UNPRICED, BudgetExceeded
from common.task import Sampling
from tests.common.llm.conftest import FAST, KEY, TOOLS, asked, config
from tests.helpers import eventually
from tests.standin import Standin, Turn

ME = Who("me@here")
DONE = Turn(tool="finish", arguments={"answer": "1"})
USED = {"prompt_tokens": 100, "completion_tokens": 10}
PRICED = Capabilities(tool_mode="native", price=(1.0, 10.0))
Through = Callable[..., OpenAIChat]


@pytest.fixture
async def through(standin: Standin, server: Server) -> AsyncIterator[Through]:
    """Make models that go through one gate; it is `model.gate`."""
    pool, gate = Pool().share(), Gate(server, "w", metrics=Metrics())

    def make(**fields: Any) -> OpenAIChat:
        url = fields.pop("url", standin.url)
        own = fields.pop("gate", gate)
        fields = {"capabilities": PRICED, **fields}
        records: list[Any] = []
        model = OpenAIChat(
            config(url, **fields), pool=pool, backoff=FAST, gate=own, observe=records.append,
            watch=BudgetWatch(server),
        )  # fmt: skip
        model.gate, model.records = own, records  # type: ignore[attr-defined]
        return model

    yield make
    await gate.close()
    await pool.release()


async def ask(model: OpenAIChat, task: str = "t", **options: Any) -> Any:
    sampling = options.pop("sampling", Sampling())
    options = {"deadline": 20, "account": "code", **options}
    return await model.complete(asked(task), TOOLS, sampling, **options)


async def spent(server: Server, model: OpenAIChat, scope: str = "run") -> Budget:
    await model.gate.flush()  # type: ignore[attr-defined]
    return (await read_budgets(server))[scope]


async def test_an_answer_is_paid_as_the_provider_counted(
    standin: Standin, server: Server, through: Through
) -> None:
    standin.script.add("t", Turn(tool="finish", arguments={}, usage=USED))
    model = through()
    await ask(model)
    for scope in ("run", "scene:code"):
        found = await spent(server, model, scope)
        assert (found.usd.spent, found.usd.held) == (100_000 + 100_000, 0)
        assert (found.tokens.spent, found.tokens.held) == (110, 0)


async def test_errors_cost_nothing_and_doubts_cost_everything(
    standin: Standin, server: Server, through: Through
) -> None:
    standin.script.add("refused", DONE, faults={"1": "400"})
    standin.script.add("broken", DONE, faults={"*": "503"})
    standin.script.add("slow", DONE, faults={"1": "stall"})
    model = through()
    with pytest.raises(ModelRefused):
        await ask(model, "refused")
    with pytest.raises(ModelUnavailable):
        await ask(model, "broken")
    away = through(url="http://127.0.0.1:1/v1")
    with pytest.raises(ModelUnavailable):
        await ask(away)
    assert (await spent(server, model)).tokens.spent == 0
    with pytest.raises(ModelUnavailable, match="no whole answer"):
        await ask(model, "slow", deadline=0.3)
    found = await spent(server, model)
    assert found.tokens.spent > 4096  # who knows what it answered to nobody
    assert found.usd.held == found.tokens.held == 0


@pytest.mark.parametrize(
    ("status", "unpaid"),
    [(408, False), (502, False), (504, False), (524, False)]
    + [(status, True) for status in (400, 401, 404, 409, 425, 429, 500, 503)],
)
def test_an_error_after_which_an_answer_may_be_billed_is_paid(status: int, unpaid: bool) -> None:
    answer = Answer(status, {}, b"{}")
    assert _is_unpaid(of_status(config("http://x/v1"), "m", answer)) is unpaid


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7.5", 7.5),
        ("9" * 400, 86_400),
        ("1234567890", 86_400),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 86_400),
        ("Fri, 31 Dec 9999 23:59:59 -9999", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", None),
        ("Mon, 01 Jan 2001 00:00:00 +99999999999", None),
        ("soon", None),
    ],
)
def test_an_absurd_retry_after_is_a_day_or_nothing(said: str, seconds: float | None) -> None:
    found = retry_after(Answer(429, {"retry-after": said}, b"{}"))
    assert found == seconds or (seconds is None and found in (0.0, 86_400.0))


def test_an_absurd_delay_in_the_body_is_a_day() -> None:
    body = b'{"error": {"details": [{"retryDelay": "%ss"}]}}' % (b"9" * 400)
    assert retry_after(Answer(429, {}, body)) == 86_400


async def test_a_count_nobody_can_have_used_is_no_count(
    standin: Standin, server: Server, through: Through
) -> None:
    usage = {"prompt_tokens": 2**64 - 1, "completion_tokens": 10}
    standin.script.add("t", Turn(tool="finish", arguments={}, usage=usage))
    model = through()
    reply = await ask(model)
    assert reply.usage.prompt_tokens < 10_000
    found = await spent(server, model)
    assert (found.tokens.held, found.calls) == (0, 1)


async def test_a_flush_between_two_calls_takes_no_budget_away(
    standin: Standin, server: Server, through: Through
) -> None:
    standin.script.add("t", Turn(tool="finish", arguments={}, usage=USED))
    model = through()
    await set_budget(server, ME, usd=5)
    await ask(model)
    await spent(server, model)
    watch = model._toll._watch  # type: ignore[union-attr]
    assert watch is not None
    await watch.look()
    await server.client.flushall()
    await ask(model)
    found = await spent(server, model)
    assert (found.usd.limit, found.tokens.spent) == (5_000_000_000, 220)


async def test_a_cancelled_call_gives_its_slot_back_and_is_taken_as_paid(
    standin: Standin, server: Server, through: Through
) -> None:
    standin.script.add("t", DONE, faults={"1": "stall"})
    model = through(concurrency=1)
    call = asyncio.create_task(ask(model))
    await eventually(lambda: bool(standin.journal), "the request arrives")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert (await spent(server, model)).tokens.spent > 0
    assert (await ask(model)).calls


async def test_an_exhausted_budget_ends_a_call_before_anything_is_sent(
    standin: Standin, server: Server, through: Through
) -> None:
    standin.script.add("t", DONE)
    await set_budget(server, ME, scene="code", usd=0.000001)
    model = through()
    with pytest.raises(BudgetExceeded, match="budget of scene code"):
        await ask(model)
    assert standin.journal == []
    assert model.records[0].error_type == "budget_exceeded"  # type: ignore[attr-defined]
    watch = model._toll._watch  # type: ignore[union-attr]
    assert watch is not None
    await watch.look()
    assert model.objection("code", Sampling()) is not None
    assert model.objection("web", Sampling()) is None


async def test_a_budget_in_dollars_refuses_a_model_without_a_price_and_says_what_to_do(
    standin: Standin, server: Server, through: Through
) -> None:
    standin.script.add("t", DONE)
    await set_budget(server, ME, usd=5)
    model = through(capabilities=Capabilities(tool_mode="native"))
    with pytest.raises(BudgetExceeded, match=r"no price is known for some-model.*LLM_PRICE"):
        await ask(model)
    assert standin.journal == []


async def test_a_model_without_a_price_is_refused_before_a_sandbox_in_the_same_words(
    standin: Standin, server: Server, through: Through
) -> None:
    standin.script.add("t", DONE)
    await set_budget(server, ME, scene="code", usd=5)
    unpriced, priced = through(capabilities=Capabilities(tool_mode="native")), through()
    for model in (unpriced, priced):
        watch = model._toll._watch  # type: ignore[union-attr]
        assert watch is not None
        await watch.look()
    with pytest.raises(BudgetExceeded) as refused:
        await ask(unpriced)
    assert str(unpriced.objection("code", Sampling())) == str(refused.value)
    assert "fleet budget clear --scene code" in str(refused.value)
    assert unpriced.objection("web", Sampling()) is None
    assert priced.objection("code", Sampling()) is None


async def test_one_calls_retry_after_holds_the_others_back(
    standin: Standin, server: Server, through: Through
) -> None:
    standin.script.add("first", DONE, faults={"1": "429:1"})
    standin.script.add("second", DONE)
    other = Gate(server, "other")
    one, two = through(), through(gate=other)
    call = asyncio.create_task(ask(one, "first"))
    await eventually(lambda: _paused(server), "the pause is known to the fleet")
    reply = await ask(two, "second", deadline=0.5)  # the pause does not use up the deadline
    assert reply.throttled > 0.3
    assert (await call).throttled >= 0.9
    refused, again = standin.of("first")
    assert min(again.arrived, standin.of("second")[0].arrived) - refused.arrived >= 1
    await other.close()


async def test_time_spent_waiting_is_told_by_the_error(standin: Standin, through: Through) -> None:
    standin.script.add("t", DONE, faults={"1": "429:0.6", "2": "400"})
    with pytest.raises(ModelRefused) as refused:
        await ask(through())
    assert refused.value.throttled >= 0.6
    standin.script.add("long", DONE, faults={"1": "429:0.2", "*": "429:100"})
    with pytest.raises(ModelRateLimited) as limited:
        await ask(through(rate_limit_budget=20), "long")
    assert limited.value.throttled >= 0.2
    assert limited.value.retry_after is not None
    assert limited.value.retry_after > 90


async def test_a_call_without_room_within_its_budget_is_a_rate_limit(
    standin: Standin, server: Server, through: Through
) -> None:
    standin.script.add("t", DONE, faults={"*": "stall"})
    blocker, other = through(concurrency=1), Gate(server, "other")
    held = asyncio.create_task(ask(blocker))
    await eventually(lambda: bool(standin.journal), "the slot is taken")
    two = through(gate=other, concurrency=1, rate_limit_budget=1)
    with pytest.raises(ModelRateLimited, match="no room among the fleet's calls"):
        await ask(two)
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    await other.close()


async def test_the_key_never_reaches_the_server(
    standin: Standin, server: Server, through: Through
) -> None:
    standin.script.add("t", DONE)
    model = through()
    await ask(model)
    await model.gate.flush()  # type: ignore[attr-defined]
    async for name in server.client.scan_iter("*"):
        dumped = await server.client.dump(name) if b"fleet" in name else b""
        assert KEY.encode() not in name + (dumped or b"")


async def test_limit_and_calls_in_flight_are_shown(standin: Standin, through: Through) -> None:
    standin.script.add("t", DONE)
    model = through(concurrency=7)
    await ask(model)
    metrics = model.gate._metrics  # type: ignore[attr-defined]
    sample = metrics.registry.get_sample_value
    assert sample("fleet_llm_concurrency_limit", {"provider": "custom"}) == 7
    assert sample("fleet_llm_in_flight", {"provider": "custom"}) is not None


def test_estimates_are_on_the_safe_side() -> None:
    with_price = config("http://x/v1", capabilities=PRICED)
    text = "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1)\n" * 50
    asked_for = {"messages": [{"role": "user", "content": text}], "max_tokens": 50}
    tokens, dollars = estimate(with_price, "m", text.encode(), asked_for)
    assert len(text) / 3 + 50 < tokens < len(text) / 2 * 1.2 + 80
    assert dollars == pytest.approx((tokens - 50) * 1000 + 50 * 10_000)
    unlimited, _ = estimate(with_price, "m", text.encode(), {})
    assert unlimited == tokens - 50 + 4096


def test_an_image_counts_as_an_image_and_not_by_its_bytes() -> None:
    body = b'{"url": "data:image/png;base64,' + b"A" * 2_000_000 + b'"}'
    tokens, _ = estimate(config("http://x/v1"), "m", body, {"max_tokens": 1})
    assert 4000 < tokens < 6000


def test_no_price_is_not_the_same_as_free() -> None:
    unknown = config("http://x/v1")
    free = config("http://x/v1", capabilities=Capabilities(tool_mode="native", price=(0, 0)))
    assert estimate(unknown, "m", b"{}", {})[1] == UNPRICED
    assert estimate(free, "m", b"{}", {})[1] == 0
    assert (is_free(unknown, "m"), is_free(free, "m")) == (False, True)
    assert nano(None) == 0
    assert nano(0.0000000015) == 2


async def _paused(server: Server) -> bool:
    keys = [key async for key in server.client.scan_iter("fleet:{quota}:p:*")]
    return bool(keys) and float(await server.client.hget(keys[0], "paused") or 0) > 0
