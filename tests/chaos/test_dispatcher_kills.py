"""The dispatcher cut down anywhere, and two of them at once: every line is queued exactly once."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from common.queue.connection import Server
from common.queue.scene_queue import SceneQueue
from dispatcher.dispatcher import dispatch
from dispatcher.tail import Position
from tests.chaos.proxy import Proxy
from tests.chaos.storm import chosen_seed
from tests.dispatcher.desk import Desk, line
from tests.helpers import eventually

SCENES = ("code", "web")


class Scribe:
    """Writes lines of all kinds to a tasks file, and knows what must become of each."""

    def __init__(self, desk: Desk, rng: random.Random) -> None:
        self.desk = desk
        self.rng = rng
        self.ids: dict[str, list[str]] = {scene: [] for scene in SCENES}
        self.bad: list[str] = []
        self.units = 0
        self._torn = b""
        self._n = 0
        desk.file.touch()

    def write(self, count: int) -> None:
        """Append ``count`` lines; now and then the last one is torn, to be ended next time."""
        data, self._torn = self._torn, b""
        for _ in range(count):
            self._n += 1
            kind = self.rng.random()
            if kind < 0.05:
                self.bad.append(f"{{bad {self._n}")
                data += self.bad[-1].encode() + b"\n"
            elif kind < 0.08:
                data += b" \n"
            else:
                scene, samples = SCENES[self._n % 2], self.rng.choice((1, 1, 1, 2))
                self.ids[scene].append(f"t{self._n:06d}")
                self.units += samples
                # One lane, so that the order can be checked too.
                data += line(self.ids[scene][-1], scene, samples=samples) + b"\n"
        if data and self.rng.random() < 0.3:
            cut = self.rng.randrange(len(data))
            data, self._torn = data[:cut], data[cut:]
        self.desk.append(data)

    def end(self) -> None:
        """Append what a torn line lacks."""
        torn, self._torn = self._torn, b""
        self.desk.append(torn)

    async def all_read(self) -> None:
        """Wait until every scene has everything that is in the file now."""
        self.end()
        size = self.desk.file.stat().st_size

        async def there() -> bool:
            for name in (*SCENES, "rejected"):
                text = await SceneQueue(self.desk.server, name).position(str(self.desk.file))
                if Position.parse(text).offset != size:
                    return False
            return True

        await eventually(there, "all of the file is read", within=60)

    async def check(self) -> None:
        """Streams, ledgers, counters and rejected.jsonl all say: each line, once, in order."""
        tasks = units = 0
        for scene in SCENES:
            seen = Counter(await self.desk.ids(scene))
            assert list(seen) == self.ids[scene]
            queue = SceneQueue(self.desk.server, scene)
            counts = await queue.counts()
            assert (counts.unaccounted, counts.waiting) == (0, seen.total())
            tasks, units = tasks + counts["tasks"], units + counts["units"]
            async with self.desk.server.client.pipeline(transaction=False) as pipe:
                for task_id in self.ids[scene]:
                    pipe.exists(queue.keys.ledger(task_id))
                assert all(await pipe.execute())
        assert tasks == sum(len(ids) for ids in self.ids.values())
        assert units == self.units
        rows = [row["text"] for row in self.desk.rejected()]
        assert sorted(rows) == sorted(self.bad)


async def _dispatch(desk: Desk, url: str, *, once: bool = False) -> None:
    """A dispatcher with connections of its own, as a process has; nothing outlives it."""
    server = Server(url)
    try:
        await dispatch(
            [desk.file], desk.settings(), server, desk.metrics, desk.health,
            draining=asyncio.Event(), once=once,
        )  # fmt: skip
    finally:
        await server.close()


async def _cancelled(desk: Desk, rng: random.Random) -> None:
    """Start a dispatcher and end it at some await, without a word."""
    running = asyncio.create_task(_dispatch(desk, desk.server.url))
    if rng.random() < 0.5:
        for _ in range(rng.randrange(200)):
            await asyncio.sleep(0)
    else:
        await asyncio.wait({running}, timeout=rng.random() * 0.05)
    await _end(running)


async def _end(*running: asyncio.Task[None]) -> None:
    """Cancel, again and again: redis-py loses a cancellation that meets the end of a send."""
    while living := {task for task in running if not task.done()}:
        for task in living:
            task.cancel()
        await asyncio.wait(living, timeout=0.05)


async def _killed(desk: Desk, rng: random.Random) -> None:
    """Start a process and kill it; most of them while they publish."""
    process = desk.process()
    await asyncio.sleep(0.4 + rng.random() * 0.8)
    process.kill()
    process.wait()


async def die_and_die_again(desk: Desk, *, cancels: int, cuts: int, kills: int) -> None:
    rng = random.Random(chosen_seed())
    scribe = Scribe(desk, rng)
    for _ in range(cancels):
        scribe.write(rng.randrange(30))
        # Every fourth time two of them read the same file.
        await asyncio.gather(*(_cancelled(desk, rng) for _ in range(1 + (rng.random() < 0.25))))
    for _ in range(kills):
        scribe.write(2000)
        await asyncio.gather(*(_killed(desk, rng) for _ in range(1 + (rng.random() < 0.25))))

    async with Proxy(desk.server.url) as proxy:
        running = [asyncio.create_task(_dispatch(desk, proxy.url)) for _ in range(2)]
        try:
            while proxy.cuts < cuts:
                cut = proxy.cuts
                # Small ones cut greetings and answers, large ones batches; some get through.
                proxy.cut_after(rng.randrange(rng.choice((3_000, 10_000, 40_000))))
                async with asyncio.timeout(60):
                    while proxy.cuts == cut:
                        scribe.write(rng.randrange(40))
                        await asyncio.wait(running, timeout=0.1)
                if proxy.cuts % 20 == 0:  # what nobody could send so far must not pile up
                    proxy.heal()
                    await scribe.all_read()
                assert not any(task.done() for task in running)
            await scribe.all_read()
        finally:
            await _end(*running)
    await scribe.check()
    print(f"dispatcher: {cancels} cancelled, {kills} rounds of SIGKILL, {cuts} cuts; "
          f"{sum(map(len, scribe.ids.values()))} tasks, {len(scribe.bad)} bad lines")  # fmt: skip


async def test_a_dispatcher_that_dies_at_50_points_queues_every_line_once(desk: Desk) -> None:
    await die_and_die_again(desk, cancels=30, cuts=17, kills=3)


@pytest.mark.chaos
async def test_a_dispatcher_that_dies_at_1000_points_queues_every_line_once(desk: Desk) -> None:
    await die_and_die_again(desk, cancels=700, cuts=260, kills=40)


async def change_the_file(desk: Desk, rounds: int) -> None:
    """Two dispatchers, one of them dying, while the file is rotated, truncated and saved anew."""
    rng = random.Random(chosen_seed())
    scribe = Scribe(desk, rng)
    done = asyncio.Event()

    async def mortal() -> None:
        while not done.is_set():
            await _cancelled(desk, rng)

    steady, dying = (
        asyncio.create_task(_dispatch(desk, desk.server.url)),
        asyncio.create_task(mortal()),
    )
    try:
        for _ in range(rounds):
            for _ in range(rng.randrange(1, 4)):
                scribe.write(rng.randrange(1, 60))
                await asyncio.sleep(rng.random() * 0.1)
            # A line that nobody had read before its file went is nobody's to find.
            await scribe.all_read()
            _change(desk.file, rng)
        scribe.write(20)
        await scribe.all_read()
        assert not steady.done()
    finally:
        done.set()
        await dying
        await _end(steady)
    await scribe.check()


def _change(file: Path, rng: random.Random) -> None:
    match rng.randrange(4):
        case 0:  # logrotate: moved away, a new one made
            file.rename(file.with_suffix(f".{rng.randrange(1 << 30)}"))
            file.touch()
        case 1:  # copytruncate
            os.truncate(file, 0)
        case 2:  # an editor saves the last half of it, without the bad lines
            lines = file.read_bytes().splitlines(keepends=True)
            kept = [row for row in lines[len(lines) // 2 :] if not row.startswith(b"{bad")]
            swap = file.with_suffix(".swp")
            swap.write_bytes(b"".join(kept))
            swap.replace(file)
        case _:  # removed for a while
            file.unlink()


async def test_rotated_and_truncated_files_lose_and_repeat_no_line(desk: Desk) -> None:
    await change_the_file(desk, 12)


@pytest.mark.chaos
async def test_200_rotations_and_truncations_lose_and_repeat_no_line(desk: Desk) -> None:
    await change_the_file(desk, 200)
