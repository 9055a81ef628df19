"""Rate limits, slots and deadlines of many calls at once."""

from __future__ import annotations

import asyncio

import pytest

from common.llm.pacing import Backoff
from common.llm.types import ModelRateLimited, ModelUnavailable
from common.task import Sampling
from tests.common.llm.conftest import TOOLS, Connect, asked
from tests.helpers import eventually
from tests.standin import Script, Standin, Turn

PLAIN = Sampling()
DONE = Turn(tool="finish", arguments={"answer": "1"})


async def test_clients_told_to_wait_come_back_spread_out(
    standin: Standin, connect: Connect
) -> None:
    after = 0.4
    for n in range(64):
        standin.script.add(f"t{n}", DONE, faults={"1": f"429:{after}"})
    model = connect(Backoff())
    replies = await asyncio.gather(
        *(model.complete(asked(f"t{n}"), TOOLS, PLAIN, deadline=20) for n in range(64))
    )
    waits = []
    for n in range(64):
        refused, retried = standin.of(f"t{n}")
        waits.append(retried.arrived - refused.arrived)
    assert min(waits) >= after
    assert max(waits) - min(waits) >= 0.25 * after
    assert all(reply.throttled >= after for reply in replies)


async def test_waiting_for_429_does_not_use_up_the_deadline(
    standin: Standin, connect: Connect
) -> None:
    standin.script.add("t", DONE, faults={"1": "429:2.0", "2": "429:0.1"})
    reply = await connect().complete(asked("t"), TOOLS, PLAIN, deadline=2.0)
    assert reply.calls[0].tool == "finish"
    assert reply.throttled >= 2.1
    assert reply.duration < 2.0


async def test_429_beyond_its_budget_ends_the_call_at_once_with_the_wait_asked_for(
    standin: Standin, connect: Connect
) -> None:
    standin.script.add("t", DONE, faults={"*": "429:200"})
    model = connect(rate_limit_budget=30.0)
    async with asyncio.timeout(10):
        with pytest.raises(ModelRateLimited) as caught:
            await model.complete(asked("t"), TOOLS, PLAIN, deadline=20)
    assert caught.value.kind == "rate_limited"
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 200
    assert model.records[0].error_type == "rate_limited"
    assert len(standin.journal) == 1


async def test_one_429_holds_back_the_other_calls_of_the_process(
    standin: Standin, connect: Connect
) -> None:
    after = 0.6
    standin.script.add("first", DONE, faults={"1": f"429:{after}"})
    standin.script.add("second", DONE)
    model = connect()
    first = asyncio.create_task(model.complete(asked("first"), TOOLS, PLAIN, deadline=20))
    await eventually(lambda: model._pacer._paused_until > 0, "the client has read the 429")
    second = await model.complete(asked("second"), TOOLS, PLAIN, deadline=20)
    await first
    assert second.throttled > 0
    assert standin.of("second")[0].arrived - standin.of("first")[0].arrived >= after


async def test_a_503_that_asks_for_more_time_than_there_is_ends_the_call(
    standin: Standin, connect: Connect
) -> None:
    standin.script.add("t", DONE, faults={"*": "503:300"})
    with pytest.raises(ModelUnavailable) as caught:
        await connect().complete(asked("t"), TOOLS, PLAIN, deadline=20)
    assert caught.value.retry_after == 300
    assert len(standin.journal) == 1


async def test_no_more_calls_are_in_flight_than_there_are_slots(
    standin: Standin, connect: Connect
) -> None:
    standin.script = Script({"*": {"turns": [{"tool": "finish", "arguments": {}, "delay": 0.02}]}})
    model = connect(concurrency=2)
    replies = await asyncio.gather(
        *(model.complete(asked(str(n)), TOOLS, PLAIN, deadline=20) for n in range(12))
    )
    assert standin.most_at_once == 2
    assert max(reply.throttled for reply in replies) > 0  # queueing is not the call's work


async def test_a_slot_that_never_comes_free_is_a_rate_limit(
    standin: Standin, connect: Connect
) -> None:
    standin.script.add("t", DONE, faults={"*": "stall"})
    model = connect(concurrency=1, rate_limit_budget=0.2)
    holder = asyncio.create_task(model.complete(asked("t"), TOOLS, PLAIN, deadline=20))
    await eventually(lambda: bool(standin.journal), "the slot is taken")
    with pytest.raises(ModelRateLimited, match="no free slot"):
        await model.complete(asked("t"), TOOLS, PLAIN, deadline=20)
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)


def test_pauses_are_jittered_over_their_floor_and_bounded() -> None:
    backoff = Backoff()
    free = [backoff.pause(2, None) for _ in range(500)]
    assert 0 <= min(free) < 0.2
    assert 1.8 < max(free) <= 2.0
    floored = [backoff.pause(1, 10.0) for _ in range(500)]
    assert min(floored) >= 10
    assert 14 < max(floored) <= 15
    assert max(backoff.pause(40, None) for _ in range(100)) <= 30
