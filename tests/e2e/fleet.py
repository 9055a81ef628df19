"""Runs the real fleet as a user would: as processes, over a folder, and looks at what it left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from common.review import Review
from common.store import Store
from common.trajectory import Trajectory

QUICK = {
    "FLEET_LEASE": "2",
    "FLEET_RETRY_DELAY": "0.1",
    "FLEET_DRAIN_GRACE": "5",
    "FLEET_LLM_PROVIDER": "",
}
"""Settings that make waiting short; what they bound stays the same."""


def environment(**more: Any) -> dict[str, str]:
    """The environment of a test's processes: no key or setting of the person running it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FLEET_")}
    kept = {k: v for k, v in kept.items() if not k.endswith("_API_KEY")}
    quick = {k: v for k, v in QUICK.items() if v}
    return {**kept, **quick, "COLUMNS": "200", **{k: str(v) for k, v in more.items()}}


def fleet(*args: Any, timeout: float = 120, **env: Any) -> subprocess.CompletedProcess[str]:
    """Run one `fleet` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "fleet", *map(str, args)],
        env=environment(**env), capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


@contextmanager
def process(*argv: Any, log: Path, **env: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the fleet, ended with the block."""
    with log.open("ab") as out:
        started = subprocess.Popen(
            [sys.executable, "-m", *map(str, argv)],
            env=environment(**env), stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        yield started
    finally:
        end(started)


def end(running: subprocess.Popen[bytes]) -> int:
    """End a process in order; by force after 20 seconds, then with all that it started.

    What hangs must not live on: a reviewer puts back the budgets that later tests throw away.
    """
    if running.poll() is None:
        started = list(_started_by(running.pid))
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            for pid in (running.pid, *started):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return running.wait(10)


def _started_by(pid: int) -> Iterator[int]:
    """Yield the processes that ``pid`` started, and theirs."""
    for threads in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # that thread has ended
            for child in threads.read_text().split():
                yield int(child)
                yield from _started_by(int(child))


def write_tasks(path: Path, tasks: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(t, ensure_ascii=False) + "\n" for t in tasks))
    return path


def read_tasks(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def printing(task_id: str, **more: Any) -> dict[str, Any]:
    """A task that one program solves."""
    return {
        "task_id": task_id,
        "task_type": "code",
        "description": "Print 42.",
        "checks": [{"type": "stdout", "expected": "42"}],
        "reference": {"actions": [{"tool": "run_python", "arguments": {"code": "print(6 * 7)"}}]},
        "max_iterations": 1,
        **more,
    }


def counters(output: Path, **env: Any) -> dict[str, dict[str, int]]:
    """What `fleet status --json` says, by scene."""
    done = fleet("status", "--json", "-o", output, **env)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def attempts(output: Path) -> dict[str, list[tuple[Trajectory, Review | None]]]:
    """Every attempt in the store, by task, with its review."""
    store = Store(output)
    return {
        task: [
            (store.read_attempt(task, a), store.read_review(task, a))
            for a in store.attempts_of(task)
        ]
        for task in store.tasks()
    }


def decisions(output: Path) -> dict[str, str]:
    """The last decision about each task."""
    return {
        task: next((r.decision for _, r in reversed(found) if r is not None), "none")
        for task, found in attempts(output).items()
    }


def wait_until(true: Any, what: str, *, within: float) -> None:
    """Return once ``true()`` holds; fail naming ``what`` otherwise."""
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.05)
