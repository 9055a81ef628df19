# mypy: ignore-errors
"""dramatiq with its Redis broker and its default of eight threads; it has no bulk enqueue."""

import time

import dramatiq
from _job import JOBS, URL, Clock, main
from dramatiq.brokers.redis import RedisBroker

broker = RedisBroker(url=URL)
dramatiq.set_broker(broker)
clock = Clock(JOBS)


@dramatiq.actor
def noop(n: int) -> None:
    clock.hit()


def _enqueue(jobs: int) -> None:
    for n in range(jobs):
        noop.send(n)


def _drain(_: int) -> None:
    dramatiq.Worker(broker, worker_threads=8).start()
    time.sleep(600)  # the clock ends the process


if __name__ == "__main__":
    main(_enqueue, _drain)
