"""Decides when a request to a model may go out: slots, rate limits, back-off, and deadlines.

Two clocks run for every call. Its *deadline* bounds work: requests and the pauses between tries.
Its *budget* bounds waiting in line: for a free slot of ours and for the provider's rate limit,
which say nothing about the task and must not use up its time.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from common.llm.faults import Limited, Transient
from common.llm.types import ModelRateLimited, ModelUnavailable


@dataclass(frozen=True)
class Backoff:
    """How long to wait before trying again: full jitter, on top of what the server asked for."""

    tries: int = 4
    """Requests in all for one call; those answered with 429 are not counted."""
    base: float = 0.5
    """Seconds; doubles with each try."""
    longest: float = 30.0

    def pause(self, failures: int, floor: float | None) -> float:
        """Return the seconds to wait. ``floor``: what Retry-After said."""
        spread = min(self.longest, self.base * 2 ** min(failures, 16))
        if floor is None:
            return random.uniform(0, spread)
        # All clients are told the same moment: without a spread they would all come back at once.
        return floor + random.uniform(0, max(spread, floor / 2))


@dataclass
class Call:
    """One `complete` on its way: what it may spend, and what has happened to it."""

    model: str
    deadline: float
    budget: float
    account: str = ""
    ticket: int = 0
    """Its place in the fleet's line, once it has one: kept through 429s."""
    spent: float = 0.0
    throttled: float = 0.0
    limited: int = 0
    faults: list[str] = field(default_factory=list)


class Pacer:
    """The pace of one provider in this process."""

    def __init__(
        self, provider: str, concurrency: int, backoff: Backoff, *, fleet: bool = False
    ) -> None:
        """``fleet``: 429s are waited out in the line of the whole fleet (`common.llm.toll`), not
        here."""
        self._fleet = fleet
        self._provider = provider
        self._concurrency = concurrency
        self._backoff = backoff
        self._slots = asyncio.Semaphore(concurrency)
        self._paused_until = 0.0

    @asynccontextmanager
    async def slot(self, call: Call) -> AsyncIterator[None]:
        """Hold one of the provider's slots; wait for it within the budget."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(call.budget if self._slots.locked() else None):
                await self._slots.acquire()
        except TimeoutError:
            raise ModelRateLimited(
                f"{self._provider}: no free slot within {call.budget:.0f} s; "
                f"{self._concurrency} calls are in flight (FLEET_LLM_CONCURRENCY)"
            ) from None
        finally:
            call.throttled += time.monotonic() - started
        try:
            yield
        finally:
            self._slots.release()

    @asynccontextmanager
    async def working(self, call: Call) -> AsyncIterator[None]:
        """Count the time of one request, and end it at the call's deadline."""
        started = time.monotonic()
        try:
            # In all, not per read: a server that drips would never meet a limit per read.
            async with asyncio.timeout(call.deadline - call.spent):
                yield
        except TimeoutError:
            call.faults.append("timeout")
            raise ModelUnavailable(
                f"{self._provider}: no whole answer from {call.model} within {call.deadline:g} s"
            ) from None
        finally:
            call.spent += time.monotonic() - started

    async def wait_while_paused(self, call: Call) -> None:
        """Keep still while the provider has asked any call of this process to slow down."""
        while (left := self._paused_until - time.monotonic()) > 0:
            await self._throttle(call, self._backoff.pause(0, left), "asked to slow down (429).")

    async def after(self, fault: Transient, call: Call) -> None:
        """Wait as a failed request demands. Raises `ModelUnavailable` when it was the last one."""
        call.faults.append(fault.label)
        if isinstance(fault, Limited):
            call.limited += 1
            floor = fault.retry_after or 0.0
            if self._fleet:
                self._afford(call, floor, str(fault))
                return
            self._paused_until = max(self._paused_until, time.monotonic() + floor)
            await self._throttle(call, self._backoff.pause(call.limited, floor), str(fault))
            return
        failures = len(call.faults) - call.limited
        pause = self._backoff.pause(failures, fault.retry_after)
        if failures >= self._backoff.tries or call.spent + pause >= call.deadline:
            raise ModelUnavailable(
                f"{self._provider}: no answer from {call.model} after {len(call.faults)} requests "
                f"in {call.spent:.1f} s; the last one {fault}",
                retry_after=fault.retry_after,
            )
        call.spent += pause
        await asyncio.sleep(pause)

    def _afford(self, call: Call, pause: float, why: str) -> None:
        if call.throttled + pause > call.budget:
            raise ModelRateLimited(
                f"{self._provider}: {why} {call.throttled:.0f} s of {call.budget:.0f} s "
                f"(FLEET_LLM_RATE_LIMIT_BUDGET) were spent waiting, {pause:.0f} s more are needed",
                retry_after=pause,
            )

    async def _throttle(self, call: Call, pause: float, why: str) -> None:
        self._afford(call, pause, why)
        started = time.monotonic()
        try:
            await asyncio.sleep(pause)
        finally:
            call.throttled += time.monotonic() - started
