"""Tasks per second and CPU per trajectory through the whole fleet, with the oracle.

File → dispatcher → stream → worker → jail → attempt file → commit → review → settled. Beside it,
in the same run, the raw limit: the same program in a bare subprocess, and in a bare jail session.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.rows import Row, Section
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.spec import SandboxSpec

N = 200
CODE = "print(6 * 7)"
LIMIT = 120.0
"""Seconds anything that is started here may take before it counts as failed."""


def _task(n: int) -> dict[str, object]:
    return {
        "task_id": f"t{n}",
        "task_type": "code",
        "agent": "oracle",
        "description": "Print 42.",
        "checks": [{"type": "stdout", "expected": "42"}],
        "reference": {"actions": [{"tool": "run_python", "arguments": {"code": CODE}}]},
    }


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _fleet(folder: Path, n: int) -> tuple[float, float]:
    """Return wall and CPU seconds of a whole `fleet up --until-done` over ``n`` tasks."""
    tasks = folder / f"tasks-{n}.jsonl"
    tasks.write_text("".join(json.dumps(_task(i)) + "\n" for i in range(n)))
    used, clock = _children(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "fleet", "up", str(tasks), "-o", str(folder / f"out-{n}"),
         "--agent", "oracle", "--until-done"],
        check=True, capture_output=True, timeout=LIMIT,
    )  # fmt: skip
    return time.perf_counter() - clock, _children() - used


def _bare(n: int) -> tuple[float, float]:
    """The same program in plain subprocesses, as many at once as there are cores."""
    used, clock = _children(), time.perf_counter()
    running: list[subprocess.Popen[bytes]] = []
    for _ in range(n):
        if len(running) == (os.cpu_count() or 1):
            running.pop(0).wait(LIMIT)
        running.append(
            subprocess.Popen(["/usr/bin/python3", "-c", CODE], stdout=subprocess.DEVNULL)
        )
    for process in running:
        process.wait(LIMIT)
    return time.perf_counter() - clock, _children() - used


def _jails(n: int) -> tuple[float, float]:
    """One jail session each, the program once in it; nothing else of the fleet."""

    async def run() -> None:
        jails = NsjailProvider()
        await jails.probe()
        slots = asyncio.Semaphore(8)

        async def one() -> None:
            async with slots, await jails.start(SandboxSpec()) as sandbox:
                result = await sandbox.run_python(CODE)
                assert result.stdout == "42\n"

        await asyncio.gather(*(one() for _ in range(n)))
        await jails.close()

    mine = resource.getrusage(resource.RUSAGE_SELF)
    used, clock = _children() + mine.ru_utime + mine.ru_stime, time.perf_counter()
    asyncio.run(run())
    mine = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter() - clock, _children() + mine.ru_utime + mine.ru_stime - used


def main() -> list[Section]:
    with tempfile.TemporaryDirectory() as folder:
        start = _fleet(Path(folder), 1)
        whole = _fleet(Path(folder), N)
    rows = {
        "bare subprocess: python3 -c": _bare(N),
        "bare jail session + run_python": _jails(N),
        # Bringing the fleet up and down is paid once, whatever the number of tasks.
        "whole fleet, oracle (start and stop taken off)": (
            whole[0] - start[0], whole[1] - start[1],
        ),
    }  # fmt: skip
    section = Section(f"Whole path, {N} tasks, 1 worker of 8 slots")
    section.headings = ("", "tasks/s", "CPU ms/trajectory", "CPU of bare")
    bare = rows["bare subprocess: python3 -c"][1]
    for name, (wall, cpu) in rows.items():
        section.lines.append(
            (name, f"{N / wall:.1f}", f"{cpu / N * 1e3:.1f}", f"{cpu / bare:.1f} x")
        )
    wall, cpu = list(rows.values())[-1]
    section.rows = [
        Row("whole path, oracle, one jail a task", N / wall, "tasks/s"),
        Row("  CPU of everything", cpu / N * 1e3, "ms a trajectory"),
        Row("start and stop of the fleet with one task", start[0], "s"),
    ]
    return [section]
