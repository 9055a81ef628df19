"""A worker with no-op jobs: take → run → commit with the real queue, and nothing but the queue.

`python -m benchmarks.subjects.drain SCENE --concurrency 32 --idle 2`, FLEET_REDIS_URL in the
environment. It waits for the first job (`--held`: for a line on standard input before), drains
until nothing has come for ``idle`` seconds, and prints what it did. Only `common.queue` is
imported, so its resident size is that of the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time

import orjson
import uvloop

from benchmarks.meter import own_cpu, own_peak
from common.process import calm_collector, consumer_name
from common.queue.committer import Committer, Done
from common.queue.connection import Server
from common.queue.heartbeat import Heartbeat
from common.queue.scene_queue import Lease, SceneQueue, wait_any

LEASE = 30.0
_PATIENCE = 10.0
"""Seconds without any job at all after which it gives up."""


class Drain:
    """N slots, one asyncio task per job, the queue's own committer and heartbeat thread."""

    def __init__(self, server: Server, scene: str, concurrency: int) -> None:
        self._queue = SceneQueue(server, scene, consumer=consumer_name())
        self._committer = Committer(self._queue)
        self._heartbeat = Heartbeat(server.url, lease=LEASE, on_lost=lambda _: None)
        self._free = concurrency
        self._freed = asyncio.Event()
        self._jobs: set[asyncio.Task[None]] = set()
        self.done = 0
        self.first = self.last = 0
        """`time.monotonic_ns` of the first start and the last end."""
        self.cpu = 0.0
        """CPU seconds between those two."""
        self.waits: list[int] = []
        """Nanoseconds from the stamp in a job's payload to its start, where it has one."""

    async def run(self, idle: float) -> None:
        """Drain until nothing came for ``idle`` seconds after the first job."""
        self._heartbeat.start()
        cpu = quiet = 0.0
        while True:
            if self._free <= 0:
                self._freed.clear()
                await self._freed.wait()
                continue
            self._heartbeat.pulse()
            leases = await self._queue.take(self._free)
            if leases:
                quiet = 0.0
                if not self.first:
                    self.first, cpu = time.monotonic_ns(), own_cpu()
                for lease in leases:
                    self._start(lease)
            elif self._jobs:
                await self._committer.close()
            else:
                self.cpu = self.cpu or own_cpu() - cpu
                quiet = quiet or time.monotonic()
                if time.monotonic() - quiet > (idle if self.done else _PATIENCE):
                    break
                await wait_any([self._queue], block_ms=200)
        self._heartbeat.stop()

    def _start(self, lease: Lease) -> None:
        self._free -= 1
        self._heartbeat.hold(self._queue, lease)
        job = asyncio.create_task(self._job(lease))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _job(self, lease: Lease) -> None:
        stamp = orjson.loads(lease.payload)["task"].get("metadata", {}).get("at")
        if stamp is not None:
            self.waits.append(time.monotonic_ns() - stamp)
        event = orjson.dumps({"attempt_id": lease.attempt_id, "passed": True})
        await self._committer.commit(lease, Done(event))
        self._heartbeat.drop(lease)
        self.done += 1
        self.last = time.monotonic_ns()
        self.cpu = 0.0
        self._free += 1
        self._freed.set()


async def run(scene: str, concurrency: int, idle: float, *, held: bool) -> dict[str, object]:
    server = Server(os.environ["FLEET_REDIS_URL"])
    drain = Drain(server, scene, concurrency)
    await server.answers()
    print("ready", flush=True)
    if held:
        sys.stdin.readline()  # nothing else runs yet
    await drain.run(idle)
    await server.close()
    return {
        "jobs": drain.done, "first": drain.first, "last": drain.last,
        "cpu": drain.cpu, "peak_mb": own_peak(), "waits": drain.waits,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subjects.drain")
    parser.add_argument("scene")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--idle", type=float, default=0.5)
    parser.add_argument("--held", action="store_true")
    given = parser.parse_args()
    calm_collector()  # as `common.service.run` does for every process of the fleet
    found = uvloop.run(run(given.scene, given.concurrency, given.idle, held=given.held))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
