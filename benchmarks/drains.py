"""No-op jobs through take and fenced commit: one worker process, two, and the raw limit."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.bench import SCENE, Bench, ask, fill, jobs
from benchmarks.meter import ServerUse
from benchmarks.subject import Subject
from common.queue.scene_queue import NewTask, SceneQueue

LIMIT = 120.0
"""Seconds one drain may take before it counts as failed."""


@dataclass(frozen=True)
class Drained:
    """What one drain took."""

    rate: float
    """Jobs a second, from the start of the first to the end of the last."""
    cpu: float
    """Microseconds of the workers' CPU a job."""
    server_cpu: float
    """Microseconds a job."""
    commands: float
    """Commands the server executed a job, those inside scripts included."""
    calls: float
    """Commands the workers sent a job."""
    peak_mb: float
    """Largest resident size of a worker process."""
    busy: float
    """Share of one core the server used."""
    waits: tuple[float, ...] = ()
    """Milliseconds from publishing to starting, for jobs that carry a stamp."""


def drained(bench: Bench, tasks: list[NewTask], *, concurrency: int, workers: int = 1) -> Drained:
    """Fill a fresh queue and drain it. Raises `SubjectFailed`."""
    bench.meter.flush()
    arguments = ["-m", "benchmarks.subjects.drain", SCENE, f"--concurrency={concurrency}", "--held"]
    with ExitStack() as stack:
        # The workers are up and wait before there is work: their start is no part of it.
        running = [
            stack.enter_context(Subject(arguments, folder=bench.folder, env=bench.environment()))
            for _ in range(workers)
        ]
        for worker in running:
            worker.line(30.0)
        fill(bench.url, tasks)
        bench.meter.restart()
        for worker in running:
            worker.go()
        found = [worker.result(LIMIT) for worker in running]
        used = bench.meter.use()
    done = sum(one["jobs"] for one in found)
    counts = ask(bench.url, lambda server: SceneQueue(server, SCENE).counts())
    if done != len(tasks) or counts["committed"] != len(tasks) or counts.unaccounted:
        raise RuntimeError(f"{len(tasks)} jobs went in, {done} were run, {counts}")
    return _summed(found, used)


def _summed(found: list[dict[str, Any]], used: ServerUse) -> Drained:
    busy = [one for one in found if one["jobs"]]
    done = sum(one["jobs"] for one in busy)
    seconds = (max(one["last"] for one in busy) - min(one["first"] for one in busy)) / 1e9
    return Drained(
        rate=done / seconds,
        cpu=sum(one["cpu"] for one in busy) / done * 1e6,
        server_cpu=used.cpu / done * 1e6,
        commands=used.commands / done,
        calls=used.calls / done,
        peak_mb=max(one["peak_mb"] for one in busy),
        busy=used.cpu / seconds,
        waits=tuple(wait / 1e6 for one in busy for wait in one["waits"]),
    )


def middle(runs: list[Drained]) -> Drained:
    """Return the median of each number, waits aside."""
    columns = zip(*((r.rate, r.cpu, r.server_cpu, r.commands, r.calls, r.peak_mb, r.busy)
                    for r in runs), strict=True)  # fmt: skip
    return Drained(*(median(column) for column in columns))


def raw(bench: Bench, count: int) -> tuple[float, float]:
    """Return jobs a second and CPU microseconds a job of the raw limit."""
    bench.meter.flush()
    arguments = ["-m", "benchmarks.subjects.raw", str(count)]
    with Subject(arguments, folder=bench.folder, env=bench.environment()) as subject:
        found = subject.result(LIMIT)
    return found["jobs"] / found["seconds"], found["cpu"] / found["jobs"] * 1e6


def stamped(stamp: int, number: int) -> list[NewTask]:
    """Return one job that carries the moment it was published, `time.monotonic_ns`."""
    [task] = jobs(1, prefix=f"l{number}-")
    body = json.loads(task.payloads[0])
    body["task"]["metadata"] = {"at": stamp}
    return [task._replace(payloads=[json.dumps(body).encode()])]
