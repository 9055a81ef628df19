"""A process that keeps model calls going: `python -m tests.common.quota.caller URL REDIS CALLERS
SECONDS TTL`. Prints one JSON object: how many calls ended how."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import Counter

from common.failures import FleetError
from common.llm.client import OpenAIChat
from common.llm.types import Capabilities
from common.process import die_with_parent
from common.queue.connection import Server
from common.quota.gate import Gate
from common.task import Sampling
from tests.common.llm.conftest import asked, config

PRICED = Capabilities(tool_mode="native", price=(1.0, 4.0))


async def main(url: str, redis_url: str, callers: int, seconds: float, ttl: float) -> None:
    die_with_parent(os.getppid())
    server = Server(redis_url)
    gate = Gate(server, f"caller-{os.getpid()}", ttl=ttl)
    model = OpenAIChat(
        config(url, rate_limit_budget=600.0, concurrency=callers, capabilities=PRICED), gate=gate
    )
    ended: Counter[str] = Counter()
    until = time.monotonic() + seconds

    async def call_again_and_again() -> None:
        while time.monotonic() < until:
            try:
                await model.complete(asked(), [], Sampling(), deadline=60, account="code")
                ended["ok"] += 1
            except FleetError as error:
                ended[error.kind.value] += 1
                if error.kind == "budget_exceeded":
                    return

    await asyncio.gather(*(call_again_and_again() for _ in range(callers)))
    await model.close()
    await gate.close()
    await server.close()
    print(json.dumps(ended))


if __name__ == "__main__":
    _, url, redis_url, callers, seconds, ttl = sys.argv
    asyncio.run(main(url, redis_url, int(callers), float(seconds), float(ttl)))
