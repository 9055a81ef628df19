# mypy: ignore-errors
"""streaq with its own bulk enqueue and uvloop; results kept for its default of five minutes."""

import logging

import uvloop
from _job import CONCURRENCY, JOBS, URL, Clock, main
from streaq import Worker

BATCH = 1000
logging.disable(logging.INFO)
worker = Worker(
    redis_url=URL, concurrency=CONCURRENCY, anyio_kwargs={"use_uvloop": True}, handle_signals=False
)
clock = Clock(JOBS)


@worker.task(silent=True)
async def noop(n: int) -> None:
    clock.hit()


async def _enqueue(jobs: int) -> None:
    async with worker:
        for start in range(0, jobs, BATCH):
            numbers = range(start, min(start + BATCH, jobs))
            await worker.enqueue_many([noop.enqueue(n) for n in numbers])


if __name__ == "__main__":
    main(lambda jobs: uvloop.run(_enqueue(jobs)), lambda _: worker.run_sync())
