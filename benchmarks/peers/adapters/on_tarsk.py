# mypy: ignore-errors
"""tarsk (Rust core): a supervisor and one child, no results; eight threads enqueue.

Its child imports this file as a module; CPU and memory are those of supervisor and child.
"""

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from _job import CONCURRENCY, JOBS, URL, Clock, main
from tarsk import App

app = App(broker=URL)
clock = Clock(JOBS, parent=True)


@app.task(name="noop")
async def noop(n: int) -> None:
    clock.hit()


def _enqueue(jobs: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(noop.send, range(jobs), chunksize=100):
            pass


def _drain(_: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result"
        env = {
            **os.environ, "TARSK_BROKER": URL, "BENCH_RESULT": str(result),
            "PYTHONPATH": str(Path(__file__).parent),
        }  # fmt: skip
        worker = subprocess.Popen(
            [str(Path(sys.executable).parent / "tarsk"), "worker", "--app", "on_tarsk:app",
             "--children", "1", "--slots", str(CONCURRENCY)],
            env=env, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            while not result.exists() and worker.poll() is None:
                time.sleep(0.02)
            print(result.read_text(), flush=True)
        finally:
            worker.kill()


if __name__ == "__main__":
    main(_enqueue, _drain)
