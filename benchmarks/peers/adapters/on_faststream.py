# mypy: ignore-errors
"""faststream on a Redis stream, publishing through its pipeline.

The subscriber is the sequential one: on no-op jobs it is the faster of its two kinds
(`max_workers=32` costs it a task group for each message).
"""

import uvloop
from _job import JOBS, URL, Clock, main
from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub

BATCH = 500
broker = RedisBroker(URL, logger=None)
app = FastStream(broker, logger=None)
clock = Clock(JOBS)


@broker.subscriber(stream=StreamSub("jobs", group="workers", consumer="one", max_records=100))
async def noop(n: int) -> None:
    clock.hit()


async def _enqueue(jobs: int) -> None:
    client = await broker.connect()
    # A group that the subscriber makes begins at the end of the stream: these jobs would be lost.
    await client.xgroup_create("jobs", "workers", id="0", mkstream=True)
    for start in range(0, jobs, BATCH):
        async with client.pipeline(transaction=False) as pipe:
            for n in range(start, min(start + BATCH, jobs)):
                await broker.publish(n, stream="jobs", pipeline=pipe)
            await pipe.execute()
    await broker.stop()


if __name__ == "__main__":
    main(lambda jobs: uvloop.run(_enqueue(jobs)), lambda _: uvloop.run(app.run()))
