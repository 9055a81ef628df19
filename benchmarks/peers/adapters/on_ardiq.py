# mypy: ignore-errors
"""ardiq (Rust core) with its bulk enqueue; results kept as it does by default."""

import uvloop
from _job import CONCURRENCY, JOBS, URL, Clock, main
from ardiq import Ardiq

BATCH = 1000
app = Ardiq(URL, concurrency=CONCURRENCY)
clock = Clock(JOBS)


@app.task
async def noop(n: int) -> None:
    clock.hit()


async def _enqueue(jobs: int) -> None:
    for start in range(0, jobs, BATCH):
        numbers = range(start, min(start + BATCH, jobs))
        await app.enqueue_many(noop.prepare(n) for n in numbers)


if __name__ == "__main__":
    main(lambda jobs: uvloop.run(_enqueue(jobs)), lambda _: uvloop.run(app.run()))
