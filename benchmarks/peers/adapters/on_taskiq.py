# mypy: ignore-errors
"""taskiq with taskiq-redis' RedisStreamBroker; its receiver in this process, no result backend."""

import uvloop
from _gather import gather
from _job import CONCURRENCY, JOBS, URL, Clock, main
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

broker = RedisStreamBroker(URL, consumer_id="0")
clock = Clock(JOBS)


@broker.task(task_name="noop")
async def noop(n: int) -> None:
    clock.hit()


async def _enqueue(jobs: int) -> None:
    await broker.startup()
    await gather(jobs, noop.kiq)


if __name__ == "__main__":
    main(
        lambda jobs: uvloop.run(_enqueue(jobs)),
        lambda _: uvloop.run(
            run_receiver_task(broker, run_startup=True, max_async_tasks=CONCURRENCY)
        ),
    )
