"""What every adapter shares: the no-op job's clock, and how results are printed.

Runs in the peers' environments, so it uses nothing but the standard library.
`ADAPTER.py enqueue N` and `ADAPTER.py drain N`, the server's URL in BENCH_URL.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONCURRENCY = 32
SETTLE = 0.3
"""Seconds a worker lives on after its last job, so that its acknowledgement is sent."""

URL = os.environ.get("BENCH_URL", "redis://127.0.0.1:6379/0")
JOBS = int(os.environ.get("BENCH_JOBS", "0"))


class Clock:
    """Counts jobs; measures from the start of the first to that of the last."""

    def __init__(self, jobs: int, *, parent: bool = False) -> None:
        self._jobs = jobs
        self._pids = ["self", str(os.getppid())] if parent else ["self"]
        self._done = 0
        self._lock = threading.Lock()

    def hit(self) -> None:
        """Called by every job."""
        with self._lock:
            self._done += 1
            if self._done == 1:
                self._began, self._cpu = time.monotonic(), self._used()
            if self._done == self._jobs:
                self._say()

    def _say(self) -> None:
        row = {
            "jobs": self._jobs,
            "seconds": time.monotonic() - self._began,
            "cpu": self._used() - self._cpu,
            "peak_mb": sum(_peak(pid) for pid in self._pids),
        }
        say(row)
        if "BENCH_RESULT" not in os.environ:
            leave = threading.Timer(SETTLE, os._exit, (0,))
            leave.daemon = True
            leave.start()

    def _used(self) -> float:
        return sum(_cpu(pid) for pid in self._pids)


def say(row: dict[str, Any]) -> None:
    """Give a result to the harness: a line on stdout, or BENCH_RESULT where that is taken."""
    text, path = json.dumps(row), os.environ.get("BENCH_RESULT")
    if path is None:
        os.write(1, text.encode() + b"\n")
        return
    Path(path + ".part").write_text(text)
    Path(path + ".part").replace(path)


def main(enqueue: Callable[[int], None], drain: Callable[[int], None]) -> None:
    """Do what the command line says."""
    what, jobs = sys.argv[1], int(sys.argv[2])
    if what == "enqueue":
        began, cpu = time.monotonic(), time.process_time()
        enqueue(jobs)
        say({"jobs": jobs, "seconds": time.monotonic() - began, "cpu": time.process_time() - cpu})
    else:
        drain(jobs)


def _cpu(pid: str) -> float:
    if pid == "self":
        return time.process_time()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak(pid: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    return 0.0
