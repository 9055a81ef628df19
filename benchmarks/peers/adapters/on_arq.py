# mypy: ignore-errors
"""arq with its poll delay cut from 500 to 10 ms, which is what bounds it; results kept as usual."""

import uvloop
from _gather import gather
from _job import CONCURRENCY, JOBS, URL, Clock, main
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker

settings = RedisSettings.from_dsn(URL)
clock = Clock(JOBS)


async def noop(ctx: dict, n: int) -> None:
    clock.hit()


async def _enqueue(jobs: int) -> None:
    pool = await create_pool(settings)
    await gather(jobs, lambda n: pool.enqueue_job("noop", n))


async def _drain() -> None:
    worker = Worker(
        functions=[noop], redis_settings=settings, max_jobs=CONCURRENCY, poll_delay=0.01,
        handle_signals=False, log_results=False,
    )  # fmt: skip
    await worker.async_run()


if __name__ == "__main__":
    main(lambda jobs: uvloop.run(_enqueue(jobs)), lambda _: uvloop.run(_drain()))
