"""256 episodes at once in one worker process, against a model that takes 200 ms to answer."""

from __future__ import annotations

import asyncio
import time

from benchmarks.bench import SCENE, Bench, ask, bench, fill, jobs
from benchmarks.meter import cpu_of
from benchmarks.rows import Row, Section, at_least, at_most
from benchmarks.subject import Subject
from common.queue.connection import Server
from common.queue.scene_queue import Counts, SceneQueue

AT_ONCE = 256
LATENCY = 0.2
TURNS = 10
"""Model calls of one episode: `max_steps` ends it."""
WAVES = 5
"""Episodes each slot runs, one after the other."""
LIMIT = 120.0


def main() -> list[Section]:
    with bench() as one:
        return [section(one)]


def section(bench: Bench) -> Section:
    """Run the waves; the ideal is that nothing but the model takes time."""
    calls, ideal = AT_ONCE * WAVES * TURNS, WAVES * TURNS * LATENCY
    with Subject(["-m", "benchmarks.standin", str(LATENCY)], folder=bench.folder) as model:
        environment = bench.environment(
            FLEET_LLM_PROVIDER="custom", FLEET_LLM_BASE_URL=model.line(30.0),
            FLEET_LLM_MODEL="standin", FLEET_LLM_CONCURRENCY=str(AT_ONCE),
            FLEET_CONCURRENCY=str(AT_ONCE),
        )  # fmt: skip
        arguments = ["-m", "benchmarks.subjects.worker"]
        with Subject(arguments, folder=bench.folder, env=environment) as worker:
            worker.line(60.0)
            fill(bench.url, jobs(AT_ONCE * WAVES, max_steps=TURNS))
            bench.meter.restart()
            wall = ask(bench.url, _until_done)
            used = bench.meter.use()
            worker.terminate()
            found = worker.result(60.0)
        model_cpu = cpu_of(model.pid)
    share = ideal / wall * 100
    return Section(
        f"{AT_ONCE} episodes at once, one worker process, a model of {LATENCY * 1000:.0f} ms",
        [
            Row("throughput, of the ideal", share, "%", at_least(95),
                f"{calls / wall:,.0f} model calls/s of {AT_ONCE / LATENCY:,.0f}; "
                f"{AT_ONCE * WAVES} episodes of {TURNS} calls"),
            Row("  worker CPU", found["cpu"] / calls * 1e3, "ms a call", None,
                f"at most {LATENCY / AT_ONCE * 1e3:.2f} ms lets one core serve them all"),
            Row("  server CPU", used.cpu / calls * 1e3, "ms a call"),
            Row("  stand-in CPU", model_cpu / calls * 1e3, "ms a call"),
            Row("worker, largest resident size", found["peak_mb"], "MB", at_most(300)),
        ],
        notes=[
            "A real worker (Worker, Episode, ModelPolicy, model client, journal, store with fsync, "
            "queue) over real HTTP to a stand-in in another process; only the world is empty. The "
            "wall clock includes the first take and the last commit.",
            "Why throughput falls short of its goal, by profile: a model call costs the worker "
            "1.18 ms of CPU, half of it aiohttp and HTTP, so one core serves 620 to 780 calls a "
            "second; a second worker process is the way.",
        ],
    )  # fmt: skip


async def _until_done(server: Server) -> float:
    """Return seconds until every episode is committed. Raises where one of them failed."""
    queue, clock = SceneQueue(server, SCENE), time.perf_counter()
    while True:
        counts: Counts = await queue.counts()
        spent = time.perf_counter() - clock
        if counts["committed"] == AT_ONCE * WAVES:
            return spent
        if counts["dead"] or counts["retried"] or spent > LIMIT:
            raise RuntimeError(f"episodes failed or did not end within {LIMIT:.0f} s: {counts}")
        await asyncio.sleep(0.05)
