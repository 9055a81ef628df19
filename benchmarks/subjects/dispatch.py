"""The real dispatcher over one file, to its end: `python -m benchmarks.subjects.dispatch FILE`.

Everything is as in `python -m dispatcher FILE --once`, except that the clock starts once the
program is loaded. FLEET_* in the environment.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from pathlib import Path

import uvloop

from benchmarks.meter import own_cpu
from common import logs
from common.metrics import Metrics
from common.process import calm_collector
from common.queue.connection import Server
from common.serve import Health
from common.settings import load
from dispatcher.dispatcher import dispatch


async def run(file: Path) -> dict[str, float]:
    settings = load(max_backlog=1 << 40)
    assert settings.redis_url is not None
    server = Server(settings.redis_url)
    print("ready", flush=True)
    clock, cpu = time.perf_counter(), own_cpu()
    await dispatch(
        [file], settings, server, Metrics(), Health(), draining=asyncio.Event(), once=True
    )
    used = {"seconds": time.perf_counter() - clock, "cpu": own_cpu() - cpu}
    print(json.dumps(used), flush=True)
    # The harness reads our size, and that of our children, before it lets us go.
    await asyncio.Event().wait()
    return used


if __name__ == "__main__":
    logs.configure("WARNING", service="dispatcher")
    logging.disable(logging.INFO)
    calm_collector()  # as `common.service.run` does for every process of the fleet
    uvloop.run(run(Path(sys.argv[1])))
