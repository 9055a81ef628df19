"""Many calls with a bounded number under way, for libraries without a bulk enqueue."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


async def gather(jobs: int, call: Callable[[int], Awaitable[object]], in_flight: int = 32) -> None:
    """Await ``call(n)`` for every n below ``jobs``, ``in_flight`` of them at a time."""
    numbers = iter(range(jobs))

    async def caller() -> None:
        for n in numbers:
            await call(n)

    await asyncio.gather(*(caller() for _ in range(in_flight)))
