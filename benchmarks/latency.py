"""How soon an idle worker starts what is published, and what it costs to wait."""

from __future__ import annotations

import asyncio
import time
from statistics import quantiles

from benchmarks.bench import SCENE, Bench, ask, bench
from benchmarks.drains import stamped
from benchmarks.meter import cpu_of, family, resident
from benchmarks.rows import Row, Section, at_most
from benchmarks.subject import Subject, SubjectFailed
from common.queue.connection import Server
from common.queue.keys import Keys
from common.queue.scene_queue import SceneQueue

SAMPLES = 300
APART = 0.020
IDLE_SECONDS = 30.0
SETTLE = 3.0
"""Seconds a worker gets after its card appeared: its first turns are no idling."""


def main() -> list[Section]:
    with bench() as one:
        section = Section("Waiting for work")
        section.rows = [*start_latency(one), *idle(one)]
        section.notes.append(
            "Latency is from before the publishing call in one process to the start of the job "
            "in another. Over loopback with idle cores, waking two processes takes most of it: a "
            "bare XADD to a blocked XREADGROUP took 0.7 ms (p50) and 4 ms (p99) on a machine of "
            "this kind. This is why the goal for p50 is missed: that alone is half of it."
        )
        return [section]


def start_latency(bench: Bench) -> list[Row]:
    """Publish one job at a time from this process; the worker is another."""
    arguments = ["-m", "benchmarks.subjects.drain", SCENE, "--idle=1"]
    with Subject(arguments, folder=bench.folder, env=bench.environment()) as worker:
        worker.line(30.0)
        time.sleep(0.5)  # not to wait for something: it is to be idle

        async def publish(server: Server) -> None:
            queue = SceneQueue(server, SCENE)
            for n in range(SAMPLES):
                await queue.publish(stamped(time.monotonic_ns(), n))
                await asyncio.sleep(APART)

        ask(bench.url, publish)
        waits = sorted(wait / 1e6 for wait in worker.result(60.0)["waits"])
    if len(waits) != SAMPLES:
        raise RuntimeError(f"{SAMPLES} jobs were published, {len(waits)} started")
    cuts = quantiles(waits, n=100)
    note = f"{SAMPLES} jobs, {APART * 1000:.0f} ms apart, published by another process"
    return [
        Row("publish → start, p50", cuts[49], "ms", at_most(1.5), note),
        Row("publish → start, p99", cuts[98], "ms", at_most(8)),
    ]


def idle(bench: Bench) -> list[Row]:
    """Let a real worker wait for work that does not come."""
    environment = bench.environment(FLEET_LOG_LEVEL="WARNING")
    arguments = ["-m", "workers", SCENE, "--no-model"]
    what = "idle worker process (`python -m workers code --no-model`), CPU"
    with Subject(arguments, folder=bench.folder, env=environment) as worker:
        try:
            _until_working(bench, worker)
        except SubjectFailed as error:
            return [Row(what, None, note=str(error))]
        before, _ = _look(worker.pid)
        bench.meter.restart()
        time.sleep(IDLE_SECONDS)
        after, size = _look(worker.pid)
        used = bench.meter.use()
    share = (after - before) / IDLE_SECONDS * 100
    return [
        Row(what, share, "% of a core", at_most(1), f"over {IDLE_SECONDS:.0f} s"),
        Row("  its resident size", size, "MB", None, "with its helper processes"),
        Row("  server CPU for it", used.cpu / IDLE_SECONDS * 100, "% of a core"),
        Row("  calls it sends", used.calls / IDLE_SECONDS, "a second"),
    ]


def _look(pid: int) -> tuple[float, float]:
    """Return CPU seconds and resident MB of a process and its children."""
    members = family(pid)
    return sum(map(cpu_of, members)), sum(map(resident, members))


def _until_working(bench: Bench, worker: Subject) -> None:
    """Wait for the worker's card, then a moment more. Raises `SubjectFailed`."""

    async def cards(server: Server) -> bool:
        async for _ in server.client.scan_iter(match=Keys(SCENE).card("*")):
            return True
        return False

    deadline = time.monotonic() + 60.0
    while not ask(bench.url, cards):
        worker.alive()
        if time.monotonic() > deadline:
            raise SubjectFailed("the worker did not begin to work within 60 s")
        time.sleep(0.2)
    time.sleep(SETTLE)
    worker.alive()
