"""Whose fault an end is, and whose time ran out: blame is fair."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.failures import ConfigurationError, FailureClass, FailureKind, FleetError
from common.llm.types import ModelRateLimited, ModelRefused, ModelUnavailable
from common.store import Store
from common.task import Assignment
from common.trajectory import Provenance, StopReason, Verdict
from tests.helpers import task
from tests.workers.episodes import Clock, Run, Script, World, after, call, finish, says
from workers.episode import Episode
from workers.policies.base import Turn
from workers.sandboxes.protocol import SandboxLost, SandboxStartError
from workers.tools import ToolOutput
from workers.verify.base import InvalidTask

# -- who is to blame ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "kind"),
    [
        (World([SandboxLost("gone")]), "sandbox_lost"),
        (World(verdict=SandboxLost("gone")), "sandbox_lost"),
        (World(sight=SandboxLost("gone")), "sandbox_lost"),
        (World(start=SandboxStartError("no jail")), "system_error"),
        (World([FleetError("slow", kind=FailureKind.RATE_LIMITED)]), "rate_limited"),
        (World(verdict=TimeoutError()), "system_error"),
    ],
    ids=["call", "verify", "reset", "start", "other", "silence"],
)
async def test_trouble_under_the_agent_is_infrastructure_and_no_verdict(
    run: Run, world: World, kind: str
) -> None:
    got = await run(Script(says(call()), says(finish("x"))), world)
    assert got.failure.kind.value == kind
    assert got.failure.failure_class is FailureClass.INFRASTRUCTURE
    assert got.stop_reason is StopReason.FAILURE
    assert (got.verdict.passed, got.verdict.reward, got.success) == (None, None, None)


async def test_what_was_done_before_the_sandbox_was_lost_is_kept_as_evidence(run: Run) -> None:
    world = World([ToolOutput("fine"), SandboxLost("gone")])
    got = await run(Script(says(call()), says(call()), says(finish())), world)
    assert [s.observation.text for s in got.steps] == ["fine"]
    assert world.verified == []
    assert got.environment.limits == {"pids": 8}


async def test_a_task_that_cannot_be_run_is_the_tasks_fault(run: Run) -> None:
    got = await run(Script(), World(start=InvalidTask("constraints.network: no")))
    assert (got.failure.kind, got.failure.failure_class) == (
        FailureKind.INVALID_TASK, FailureClass.TASK,
    )  # fmt: skip
    assert got.messages == got.steps == ()


async def test_what_only_the_operator_can_mend_is_raised(run: Run) -> None:
    with pytest.raises(ConfigurationError, match="key"):
        await run(Script(ConfigurationError("the key is refused")))


@pytest.mark.parametrize(
    ("kind", "stop"),
    [
        (FailureKind.BUDGET_EXCEEDED, StopReason.BUDGET),
        (FailureKind.CANCELLED, StopReason.CANCELLED),
    ],
)
async def test_a_spent_budget_and_a_cancelled_task_have_their_own_reasons(
    run: Run, kind: FailureKind, stop: StopReason
) -> None:
    got = await run(Script(FleetError("enough", kind=kind)))
    assert (got.stop_reason, got.failure.kind, got.success) == (stop, kind, None)


async def test_a_cancelled_episode_closes_its_world(store: Store) -> None:
    world = World()
    asked = asyncio.Event()

    class Thinks(Script):
        async def act(self, *_: Any, **__: Any) -> Turn:
            asked.set()
            return await asyncio.Future()

    provenance = Provenance(fleet_version="0", worker="w", host="h")
    assignment = Assignment(task=task())
    episode = Episode(assignment, "a1", world, Thinks(), store, provenance)  # type: ignore[arg-type]
    running = asyncio.create_task(episode.run())
    async with asyncio.timeout(10):
        await asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert world.closed == 1


async def test_a_model_that_refuses_ends_it_and_what_was_done_is_verified(run: Run) -> None:
    world = World(verdict=Verdict(passed=False, reward=0.0))
    got = await run(Script(says(call()), ModelRefused("context overflow")), world)
    assert (got.stop_reason, got.failure.kind) == (StopReason.FAILURE, FailureKind.MODEL_ERROR)
    assert got.failure.failure_class is FailureClass.AGENT
    assert (world.verified, got.success) == ([("", 1)], False)


async def test_a_model_out_of_reach_is_infrastructure(run: Run) -> None:
    world = World()
    got = await run(Script(says(call()), ModelUnavailable("no answer")), world)
    assert (got.failure.kind, got.success) == (FailureKind.NETWORK_ERROR, None)
    assert got.failure.failure_class is FailureClass.INFRASTRUCTURE
    assert (world.verified, len(got.steps)) == ([], 1)


async def test_a_rate_limit_that_lasts_is_infrastructure_and_says_how_long_to_wait(
    run: Run,
) -> None:
    got = await run(Script(ModelRateLimited("429", retry_after=17.0)))
    assert (got.failure.kind, got.failure.retry_after) == (FailureKind.RATE_LIMITED, 17.0)


# -- time -----------------------------------------------------------------------------------------


async def test_an_agent_that_takes_too_long_times_out_and_is_verified(
    run: Run, clock: Clock
) -> None:
    world = World()
    slow = [after(clock, 40, says(call()))] * 9
    got = await run(Script(*slow), world, timeout=100)
    assert (got.stop_reason, len(got.steps)) == (StopReason.TIMEOUT, 3)
    assert (got.failure.kind, got.failure.failure_class) == (
        FailureKind.TIMEOUT, FailureClass.AGENT,
    )  # fmt: skip
    assert "100 s" in got.failure.message
    assert (world.verified, got.success) == ([("", 3)], True)
    assert got.total_duration == 120


async def test_a_call_gets_the_time_of_a_step_but_no_more_than_is_left(
    run: Run, clock: Clock
) -> None:
    world = World()
    script = Script(
        says(call()), after(clock, 90, says(call())), after(clock, 20, says(call())),
    )  # fmt: skip
    await run(script, world, timeout=100, step=30.0)
    assert [timeout for _, _, timeout in world.called] == [30.0, 10.0, 0.1]
    assert script.deadlines == [100, 100, 10]


async def test_waiting_for_a_rate_limit_is_not_the_agents_time(run: Run, clock: Clock) -> None:
    waits = [after(clock, 500, says(call(), throttled=490.0))] * 5
    got = await run(Script(*waits, says(finish("x"))), timeout=100)
    assert (got.stop_reason, got.final_result, got.throttled) == (StopReason.FINISH, "x", 2450.0)
    got = await run(Script(*waits, *waits, *waits), timeout=100, max_steps=20)
    assert (got.stop_reason, len(got.steps)) == (StopReason.TIMEOUT, 10)


async def test_a_provider_that_stalls_away_more_than_half_of_the_time_is_to_blame(
    run: Run, clock: Clock
) -> None:
    world = World()
    stalls = after(clock, 60, ModelUnavailable("no whole answer within 60 s"))
    got = await run(Script(after(clock, 40, says(call())), stalls), world, timeout=100)
    assert (got.failure.kind, got.success, world.verified) == (FailureKind.NETWORK_ERROR, None, [])


async def test_an_agent_that_dawdled_before_the_last_call_is_to_blame(
    run: Run, clock: Clock
) -> None:
    world = World()
    cut = after(clock, 40, ModelUnavailable("no whole answer within 40 s"))
    got = await run(Script(after(clock, 60, says(call())), cut), world, timeout=100)
    assert (got.stop_reason, got.failure.kind) == (StopReason.TIMEOUT, FailureKind.TIMEOUT)
    assert (world.verified, got.success) == ([("", 1)], True)


async def test_a_rate_limit_late_in_an_episode_is_never_the_agents_timeout(
    run: Run, clock: Clock
) -> None:
    """Its waits are not counted as throttled, since the call brought no turn to count them on."""
    limited = after(clock, 600, ModelRateLimited("429 for 600 s", retry_after=60.0))
    got = await run(Script(after(clock, 60, says(call())), limited), timeout=100)
    assert (got.failure.kind, got.failure.retry_after) == (FailureKind.RATE_LIMITED, 60.0)
    assert got.success is None
