"""A fake provider with a limit nobody is told: answers 429 above so many requests in flight."""

from __future__ import annotations

import asyncio
import random
import time
from itertools import pairwise
from types import TracebackType

from aiohttp import web


class HiddenLimit:
    """`async with HiddenLimit(40) as provider: … provider.url`. Times: monotonic seconds."""

    def __init__(
        self,
        limit: int,
        *,
        latency: tuple[float, float] = (0.2, 0.4),
        retry_after: float | None = None,
        seed: int = 1,
    ) -> None:
        self.limit = limit
        self.retry_after = retry_after
        self.storm = False
        """While true every request is answered with 429."""
        self._latency = latency
        self._rng = random.Random(seed)
        self.in_flight = 0
        self.answered: list[float] = []
        self.refused: list[float] = []
        self.arrived: list[float] = []
        self._levels: list[tuple[float, int]] = [(time.monotonic(), 0)]
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> HiddenLimit:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/chat/completions", self._complete)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def mean_in_flight(self, since: float, until: float) -> float:
        """Return the requests being worked on, averaged over time."""
        levels = [*self._levels, (until, 0)]
        area = 0.0
        for (at, level), (then, _) in pairwise(levels):
            area += level * max(0.0, min(then, until) - max(at, since))
        return area / (until - since)

    def refusals(self, since: float = 0.0) -> float:
        """Return the share of answers that were 429."""
        refused = sum(at >= since for at in self.refused)
        return refused / max(1, refused + sum(at >= since for at in self.answered))

    async def _complete(self, request: web.Request) -> web.Response:
        await request.read()
        self.arrived.append(time.monotonic())
        if self.storm or self.in_flight >= self.limit:
            self.refused.append(time.monotonic())
            headers = {} if self.retry_after is None else {"Retry-After": f"{self.retry_after:g}"}
            error = {"error": {"message": "Too many requests"}}
            return web.json_response(error, status=429, headers=headers)
        self._level(1)
        try:
            await asyncio.sleep(self._rng.uniform(*self._latency))
        finally:
            self._level(-1)
        self.answered.append(time.monotonic())
        message = {"role": "assistant", "content": "Done."}
        return web.json_response(
            {
                "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
                "usage": {"prompt_tokens": 20, "completion_tokens": 2},
            }
        )

    def _level(self, by: int) -> None:
        self.in_flight += by
        self._levels.append((time.monotonic(), self.in_flight))
