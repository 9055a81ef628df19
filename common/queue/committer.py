"""Ends leases with their outcome: one call in flight, many outcomes in it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from common.approvals import Wait
from common.failures import LeaseLost
from common.queue.keys import LANES
from common.queue.scene_queue import Lease, SceneQueue
from common.review import DecisionName
from common.task import Assignment

_BATCH = 64


@dataclass(frozen=True)
class Done:
    """The attempt is in the store; the event points to it."""

    event: bytes


@dataclass(frozen=True)
class Retry:
    """Infrastructure broke it; again after ``delay`` seconds, within the retry budget."""

    delay: float
    error: str
    counted: bool = True
    """False: only somebody else's rate limit held it up. Such retries have a budget of their own,
    so that a storm of 429s costs no task."""


@dataclass(frozen=True)
class Dead:
    """Running it again cannot help."""

    reason: str
    error: str


@dataclass(frozen=True)
class Cancelled:
    """A person asked for the task to end."""


@dataclass(frozen=True)
class Decision:
    """What the reviewer decided about a committed attempt."""

    verdict: Literal["passed", "failed", "unverified"]
    decision: DecisionName
    score: int | None
    record: bytes
    next: Assignment | None = None
    """The revision that goes to work, for `iterate`."""
    wait: Wait | None = None
    """What people have to decide, for `waiting`."""

    def __post_init__(self) -> None:
        if (self.wait is not None) != (self.decision == "waiting"):
            raise ValueError("what waits for people, and nothing else, says what it waits for")


Outcome = Done | Retry | Dead | Cancelled | Decision


class Committer:
    """Commits outcomes of one `SceneQueue`, fenced and coalesced.

    While one call is under way the next outcomes gather, up to 64, and go together: the latency
    of one call, the throughput of many.
    """

    def __init__(self, queue: SceneQueue, *, max_retries: int = 5, max_waits: int = 100) -> None:
        self._queue = queue
        self._limits = (max_retries, max_waits)
        self._waiting: list[tuple[Lease, Outcome, asyncio.Future[int]]] = []
        self._pump: asyncio.Task[None] | None = None

    async def commit(self, lease: Lease, outcome: Outcome) -> None:
        """Return once ``outcome`` is durable. Raises `LeaseLost` when the lease is not ours."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((lease, outcome, future))
        if self._pump is None or self._pump.done():
            # A task of its own: a caller that is cancelled must not take others' commits along.
            self._pump = asyncio.create_task(self._run(), name="committer")
        if await future == 0:
            raise LeaseLost(f"{lease.task_id} {lease.unit}: taken over by another consumer")

    async def close(self) -> None:
        """Wait for what is under way."""
        if self._pump is not None:
            await self._pump

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            try:
                replies = await self._send([(lease, outcome) for lease, outcome, _ in batch])
            except Exception as error:  # goes to the callers, who decide
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, _, future), reply in zip(batch, replies, strict=True):
                if not future.done():
                    future.set_result(reply)

    async def _send(self, batch: Sequence[tuple[Lease, Outcome]]) -> list[int]:
        queue, keys = self._queue, self._queue.keys
        if queue.stage == "review":
            argv: list[Any] = [queue.consumer, queue.ttl_ms]
            for lease, outcome in batch:
                assert isinstance(outcome, Decision)
                argv += _decision_fields(lease, outcome)
            reply = await queue.server.fcall(
                "settle", (keys.prefix, keys.events, *keys.lanes), argv
            )
        else:
            argv = [queue.consumer, queue.ttl_ms, *self._limits]
            for lease, outcome in batch:
                verb, a, b = _verb(outcome)
                argv += (
                    lease.stream, lease.entry, lease.deliveries, lease.task_id, lease.unit,
                    lease.attempt_id, verb, a, b,
                )  # fmt: skip
            reply = await queue.server.fcall("commit", (keys.prefix, *keys.lanes), argv)
        return list(reply)


def _verb(outcome: Outcome) -> tuple[str, Any, Any]:
    """Return the verb and its two arguments, as commit.lua reads them."""
    match outcome:
        case Done(event):
            return "done", event, ""
        case Retry(delay, error, counted):
            return "retry" if counted else "wait", int(delay * 1000), _text(error)
        case Dead(reason, error):
            return "dead", reason, _text(error)
        case Cancelled():
            return "cancelled", "", ""
        case Decision():
            raise TypeError("a worker commits attempts, not decisions")


def _text(error: str) -> bytes:
    """Encode what somebody said: half a surrogate pair must not cost the others in the batch."""
    return error.encode("utf-8", "replace")


def _decision_fields(lease: Lease, outcome: Decision) -> list[Any]:
    then: list[Any] = ["", "", ""]
    if outcome.wait is not None:
        wait = outcome.wait
        ids = orjson.dumps([approval.approval_id for approval in wait.approvals])
        then = [int(wait.expires_at * 1000), wait.model_dump_json(exclude_defaults=True), ids]
    if outcome.next is not None:
        task = outcome.next.task
        then = [LANES.index(task.lane) + 1, outcome.next.encode(), outcome.next.unit]
    score = "" if outcome.score is None else outcome.score
    return [
        lease.entry, lease.deliveries, lease.task_id, lease.unit, lease.attempt_id,
        outcome.verdict, outcome.decision, score, outcome.record, *then,
    ]  # fmt: skip
