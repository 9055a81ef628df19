"""The raw limit: XREADGROUP of 100, one function call that commits the 100; nothing around it.

Measured as the project's reference did: redis-py's asyncio client with hiredis and uvloop, one
connection. `python -m benchmarks.subjects.raw JOBS`, FLEET_REDIS_URL in the environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import redis.asyncio
import uvloop

from benchmarks.meter import own_cpu

COUNT = 100
BATCH = 1000
STREAM, EVENTS, GROUP, CONSUMER = "{raw}", "{raw}:events", "workers", "one"
LIBRARY = Path(__file__).resolve().parent.parent / "raw.lua"


async def run(jobs: int) -> dict[str, float]:
    client: Any = redis.asyncio.Redis.from_url(
        os.environ["FLEET_REDIS_URL"], socket_timeout=30.0, single_connection_client=True
    )
    await client.function_load(LIBRARY.read_text(), replace=True)
    payload = b"x" * 120
    for start in range(0, jobs, BATCH):
        pipe = client.pipeline(transaction=False)
        for n in range(start, start + BATCH):
            pipe.xadd(STREAM, {"id": f"t{n}", "u": "r1-s0", "p": payload})
        await pipe.execute()
    await client.xgroup_create(STREAM, GROUP, id="0")
    event, left = b'{"attempt_id":"r1-s0-1-0-d1-abcdef","passed":true}', jobs
    clock, cpu = time.perf_counter(), own_cpu()
    while left:
        [[_, rows]] = await client.xreadgroup(GROUP, CONSUMER, {STREAM: ">"}, count=COUNT)
        argv: list[Any] = [GROUP, CONSUMER, "{raw}:t:", int(time.time() * 1000)]
        for entry, fields in rows:
            argv += [entry, 1, fields[b"id"], event]
        left -= await client.fcall("raw_commit", 2, STREAM, EVENTS, *argv)
    seconds, cpu = time.perf_counter() - clock, own_cpu() - cpu
    await client.aclose()
    return {"jobs": jobs, "seconds": seconds, "cpu": cpu}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(run(int(sys.argv[1])))), flush=True)
