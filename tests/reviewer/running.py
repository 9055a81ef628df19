"""A reviewer in the process of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from common.metrics import Metrics
from common.queue.connection import Server
from common.serve import Health
from common.settings import load
from common.store import Store
from reviewer.reviewer import Reviewer


@asynccontextmanager
async def reviewing(
    server: Server, output: Path, metrics: Metrics | None = None, ttl: float = 60.0, **more: Any
) -> AsyncIterator[None]:
    """A reviewer in this process, until the block ends. ``ttl``: of what people are asked."""
    settings = load(
        lease=2.0, redis_url=server.url, output=output, ask_people="early", approval_ttl=ttl
    )
    draining = asyncio.Event()
    reviewer = Reviewer(
        settings, server, Store(output), ["code"], metrics or Metrics(), Health(), consumer="r",
        **more,
    )  # fmt: skip
    running = asyncio.create_task(reviewer.run(draining))
    try:
        yield
    finally:
        draining.set()
        await asyncio.wait_for(running, 20)
