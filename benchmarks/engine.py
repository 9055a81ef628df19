"""The engine: a file into the queue, and no-op jobs out of it, against the raw limit."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from benchmarks import drains
from benchmarks.bench import BATCH, SCENE, Bench, ask, bench, jobs
from benchmarks.meter import cpu_of, family, resident
from benchmarks.rows import Row, Section, at_least, at_most
from benchmarks.subject import Subject
from common.queue.connection import Server
from common.queue.scene_queue import NewTask, SceneQueue
from dispatcher.parse import parse

LINES = 1_000_000
JOBS = 40_000
ROUNDS = 3
FILE_LIMIT = 240.0


def main() -> list[Section]:
    with bench() as one:
        drained = drain_section(one)
    with bench() as one:
        return [file_section(one, LINES), drained]


# -- file → stream ---------------------------------------------------------------------------


def line(n: int) -> bytes:
    """Return a line as users write them."""
    task = {
        "task_id": f"t{n}", "task_type": "code_exec",
        "description": "Write a program that prints the sum of the numbers from 1 to 100.",
        "expected_tools": ["python_executor"], "max_steps": 10, "timeout": 120, "priority": 5,
    }  # fmt: skip
    return json.dumps(task).encode() + b"\n"


def file_section(bench: Bench, count: int) -> Section:
    """Dispatch a file of ``count`` lines with the real dispatcher."""
    section = Section(f"File → stream, exactly once: {count:,} lines")
    file = bench.folder / "tasks.jsonl"
    with file.open("wb") as out:
        out.writelines(line(n) for n in range(count))
    each = file.stat().st_size / count
    validation = _validation()
    empty = bench.meter.used_memory()
    bench.meter.restart()
    arguments = ["-m", "benchmarks.subjects.dispatch", str(file)]
    with Subject(arguments, folder=bench.folder, env=bench.environment()) as subject:
        subject.line(30.0)
        with _watching(subject.pid) as sizes:
            found = subject.result(FILE_LIMIT)
        used, memory = bench.meter.use(), bench.meter.used_memory() - empty
        cpu = sum(cpu_of(pid) for pid in family(subject.pid)[1:]) + found["cpu"]
    counts = ask(bench.url, lambda server: SceneQueue(server, SCENE).counts())
    if counts["tasks"] != count or counts.waiting != count:
        raise RuntimeError(f"{count} lines went in; {counts}")
    quarter = max(sizes[: max(1, len(sizes) // 4)])
    section.rows = [
        Row("file → stream, validated, exactly once", count / found["seconds"], "lines/s",
            at_least(100_000), f"lines of {each:.0f} bytes; all of them in the queue, checked"),
        Row("  dispatcher CPU", cpu / count * 1e6, "µs/line"),
        Row("  of that, validation (measured apart)", validation * 1e6, "µs/line", None,
            f"alone: {1 / validation:,.0f} lines/s in one process"),
        Row("  server CPU", used.cpu / count * 1e6, "µs/line"),
        Row("dispatcher, largest resident size", max(sizes), "MB", at_most(150),
            "its processes together"),
        Row("  growth after the first quarter", max(sizes) - quarter, "MB"),
        Row("server memory of a queued task", memory / count, "bytes", None,
            "entry, ledger row and payload"),
    ]  # fmt: skip
    section.notes.append(
        "The dispatcher's own code reads the file, validates every line, and publishes it with "
        "its ledger row and the file's position in one call; the clock starts once the program "
        "is loaded. Afterwards the queue is asked whether every line is in it, once. Validation "
        "apart is `dispatcher.parse.parse` alone over the same lines, in one process."
    )
    section.notes.append(
        "Why file → stream falls short of its goal, by profile: a line takes 29 µs of the "
        "dispatcher's CPU, 10 of them validation, and 25 µs of the server's, on a machine 2.6 "
        "times slower than the one the goals were set on (raw limit 20,753 jobs/s against "
        "55,000)."
    )
    return section


def _validation() -> float:
    """Return seconds to validate one line, best of three."""
    lines = [line(n).rstrip() for n in range(5000)]
    best = float("inf")
    for _ in range(3):
        clock = time.process_time()
        for data in lines:
            parse(data)
        best = min(best, time.process_time() - clock)
    return best / len(lines)


@contextmanager
def _watching(pid: int) -> Iterator[list[float]]:
    """Note the resident size of a process with its children, MB, ten times a second."""
    sizes: list[float] = []
    ended = threading.Event()

    def look() -> None:
        while True:
            sizes.append(sum(resident(one) for one in family(pid)))
            if ended.wait(0.1):
                return

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield sizes
    finally:
        ended.set()
        watch.join(5.0)


# -- drain -----------------------------------------------------------------------------------


def drain_section(bench: Bench) -> Section:
    """Drain no-op jobs with 32 and 200 slots, with two processes, and by hand; interleaved."""
    tasks = jobs(JOBS)
    few, many, pairs, limits, published = [], [], [], [], []
    for _ in range(ROUNDS):
        limits.append(drains.raw(bench, JOBS))
        few.append(drains.drained(bench, tasks, concurrency=32))
        many.append(drains.drained(bench, tasks, concurrency=200))
        pairs.append(drains.drained(bench, tasks, concurrency=200, workers=2))
        published.append(publish_rate(bench, tasks))
    thirty_two, one, two = (drains.middle(runs) for runs in (few, many, pairs))
    limit = median(rate for rate, _ in limits)
    section = Section(f"No-op drain, {JOBS:,} jobs, medians of {ROUNDS}")
    section.headings = ("", "jobs/s", "worker µs/job", "server µs/job", "commands/job",
                        "calls/job", "MB a process", "server, of a core")  # fmt: skip
    for name, run in (
        ("1 process, 32 slots", thirty_two),
        ("1 process, 200 slots", one),
        ("2 processes, 200 slots each", two),
    ):
        section.lines.append(
            (name, f"{run.rate:,.0f}", f"{run.cpu:.1f}", f"{run.server_cpu:.1f}",
             f"{run.commands:.2f}", f"{run.calls:.2f}", f"{run.peak_mb:.0f}", f"{run.busy:.0%}")
        )  # fmt: skip
    by_hand = median(cpu for _, cpu in limits)
    section.lines.append(("raw limit: 100 at a time, by hand", f"{limit:,.0f}", f"{by_hand:.1f}",
                          "", "", "", "", ""))  # fmt: skip
    best = max((thirty_two, one), key=lambda run: run.rate)
    gain = median(b.rate / a.rate for a, b in zip(many, pairs, strict=True))
    section.rows = [
        Row("publish alone (ready payloads, batches of 500)", median(published), "tasks/s"),
        Row("drain, one process", best.rate, "jobs/s", at_least(25_000)),
        Row("  of the raw limit", best.rate / limit * 100, "%", at_least(40),
            f"limit: {limit:,.0f} jobs/s"),
        Row("  worker CPU", best.cpu, "µs/job", at_most(25)),
        Row("  server CPU", best.server_cpu, "µs/job"),
        Row("  server commands", best.commands, "a job", at_most(4), "those in scripts included"),
        Row("  calls from the worker", best.calls, "a job"),
        Row("two processes against one", gain, "x", at_least(1.7),
            f"the server took {two.busy:.0%} of a core"),
        Row("engine alone, largest resident size", thirty_two.peak_mb, "MB", at_most(40),
            "32 slots; a process that imports common.queue and consumes"),
    ]  # fmt: skip
    section.notes.append(
        "A job is: taken, given a task of its own and a lease in the heartbeat, its payload read, "
        "committed with fencing, event, ledger and counters. The raw limit is XREADGROUP of 100 "
        "and one hand-written function call that checks the owner, adds an event and a state for "
        "each, and acknowledges and deletes them; no slots, no tasks, no ledger of units. "
        "CPU is counted from the first start to the last commit, without the start of the "
        "program. Every run ends with the proof that each job was committed exactly once."
    )
    section.notes.append(
        "Why goals are missed here, by profile, on a machine 2.6 times slower than the one they "
        "were set on (raw limit 20,753 jobs/s against 55,000). The drain of one process is bound "
        "by the server: its 55 µs a job (XREADGROUP, XADD, HSET, XACK, XDEL and their "
        "append-only file) allow 18,000 jobs/s at best. The worker's CPU is 31 µs a job at that "
        "slower speed. Two processes share two cores with the server, which is at 84 % of one. "
        "Of the engine's resident size, redis-py alone takes 30 MB, structlog with rich 8, "
        "pydantic 8."
    )
    return section


def publish_rate(bench: Bench, tasks: list[NewTask]) -> float:
    """Return tasks a second into a fresh queue, a file's position moving along."""
    bench.meter.flush()

    async def publish(server: Server) -> float:
        queue, at = SceneQueue(server, SCENE), ""
        clock = time.perf_counter()
        for start in range(0, len(tasks), BATCH):
            new = str(start + BATCH)
            await queue.publish(tasks[start : start + BATCH], file="f", expected=at, new=new)
            at = new
        return len(tasks) / (time.perf_counter() - clock)

    return ask(bench.url, publish)
