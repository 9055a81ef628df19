# mypy: ignore-errors
"""saq with its Redis queue; results kept as it does by default."""

import logging

import uvloop
from _gather import gather
from _job import CONCURRENCY, JOBS, URL, Clock, main
from saq import Queue, Worker

logging.disable(logging.INFO)
clock = Clock(JOBS)


async def noop(ctx: dict, *, n: int) -> None:
    clock.hit()


async def _enqueue(jobs: int) -> None:
    queue = Queue.from_url(URL)
    await queue.connect()
    await gather(jobs, lambda n: queue.enqueue("noop", n=n))


async def _drain() -> None:
    worker = Worker(Queue.from_url(URL), functions=[noop], concurrency=CONCURRENCY)
    await worker.queue.connect()
    await worker.start()


if __name__ == "__main__":
    main(lambda jobs: uvloop.run(_enqueue(jobs)), lambda _: uvloop.run(_drain()))
