# mypy: ignore-errors
"""celery's solo pool with a prefetch of 32 and results ignored: its fastest for no-op jobs.

It acknowledges before it runs a job (its default), which nobody else here does.
"""

from _job import CONCURRENCY, JOBS, URL, Clock, main
from celery import Celery

app = Celery("bench", broker=URL)
app.conf.update(
    task_ignore_result=True, worker_prefetch_multiplier=CONCURRENCY, worker_hijack_root_logger=False
)
clock = Clock(JOBS)


@app.task(name="noop")
def noop(n: int) -> None:
    clock.hit()


def _enqueue(jobs: int) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for n in range(jobs):
            noop.apply_async((n,), producer=producer)


def _drain(_: int) -> None:
    app.worker_main(
        ["worker", "--pool=solo", "--concurrency=1", "--loglevel=ERROR", "--without-gossip",
         "--without-mingle", "--without-heartbeat"]
    )  # fmt: skip


if __name__ == "__main__":
    main(_enqueue, _drain)
