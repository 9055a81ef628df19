"""The dispatcher as a process: killed, raced, ended, and given a file far larger than itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import orjson

from common.queue.scene_queue import SceneQueue
from dispatcher.readers import REJECTED
from dispatcher.tail import Position
from tests.dispatcher.desk import Desk, line, lines
from tests.helpers import eventually

SCENES = ("code", "web")


def write_tasks(file: Path, count: int) -> dict[str, list[str]]:
    """Write ``count`` tasks over two scenes, every thousandth followed by a bad line."""
    ids: dict[str, list[str]] = {scene: [] for scene in SCENES}
    with file.open("wb") as out:
        for n in range(count):
            scene = SCENES[n % 2]
            ids[scene].append(f"t{n:06}")
            out.write(line(ids[scene][-1], scene) + b"\n")
            if n % 1000 == 0:
                out.write(b"{bad %d\n" % n)
    return ids


async def offset(desk: Desk) -> int:
    position = await SceneQueue(desk.server, "code").position(str(desk.file))
    return Position.parse(position).offset


async def test_killed_again_and_again_it_queues_every_line_once(desk: Desk) -> None:
    ids = write_tasks(desk.file, 20_000)
    size = desk.file.stat().st_size
    for part in range(1, 5):
        process = desk.process()
        try:

            async def far_enough(goal: int = size * part // 5) -> bool:
                return await offset(desk) >= goal

            await eventually(far_enough, f"part {part} of the file")
        finally:
            process.kill()
            process.wait()
        assert await offset(desk) < size, "killed too late to mean anything"
    process = desk.process("--once")
    await asyncio.to_thread(process.wait, 30)
    assert process.returncode == 0
    for scene in SCENES:
        assert await desk.ids(scene) == ids[scene]
    rows = desk.rejected()
    assert [row["text"] for row in rows] == [f"{{bad {n}" for n in range(0, 20_000, 1000)]


async def test_two_dispatchers_on_one_file_queue_every_line_once(desk: Desk) -> None:
    ids = write_tasks(desk.file, 6_000)
    both = [desk.process("--once") for _ in range(2)]
    for process in both:
        await asyncio.to_thread(process.wait, 30)
        assert process.returncode == 0
    for scene in SCENES:
        assert await desk.ids(scene) == ids[scene]
    assert len(desk.rejected()) == 6


async def test_it_goes_on_at_the_exact_byte_and_ends_on_a_signal(desk: Desk) -> None:
    desk.append(lines(["a", "b"]) + line("c")[:9])
    for starts, number in enumerate((signal.SIGTERM, signal.SIGINT), start=1):
        process = desk.process()
        await desk.arrived(["a", "b"])
        expected = len(lines(["a", "b"]))

        async def there(expected: int = expected, starts: int = starts) -> bool:
            if desk.log().count("dispatcher.started") < starts:
                return False
            rejected = await SceneQueue(desk.server, REJECTED).position(str(desk.file))
            return await offset(desk) == Position.parse(rejected).offset == expected

        await eventually(there, "position behind the last whole line")
        process.send_signal(number)
        assert await asyncio.to_thread(process.wait, 10) == 0
    desk.append(line("c")[9:])
    process = desk.process("--once")
    assert await asyncio.to_thread(process.wait, 20) == 0
    assert await desk.ids() == ["a", "b", "c"]
    assert all(orjson.loads(row)["service"] == "dispatcher" for row in desk.log().splitlines())


async def test_it_ends_although_the_server_is_away(desk: Desk) -> None:
    process = desk.process(FLEET_REDIS_URL="redis://127.0.0.1:1/0")
    await eventually(lambda: "queue.server_away" in desk.log(), "it waits for the server")
    process.terminate()
    assert await asyncio.to_thread(process.wait, 15) == 0


async def test_its_memory_does_not_grow_with_the_file(desk: Desk) -> None:
    peaks = []
    for count in (3_000, 30_000):
        write_tasks(desk.file, count)
        await desk.server.client.flushall()
        process = desk.process("--once")
        _, status, usage = await asyncio.to_thread(os.wait4, process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        peaks.append(usage.ru_maxrss)
    assert peaks[1] - peaks[0] < 10_000, peaks  # KiB


def test_a_configuration_error_is_one_line_and_exit_code_78(tmp_path: Path) -> None:
    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dispatcher", *arguments], capture_output=True, text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("FLEET_")} | env,
            timeout=20,
        )  # fmt: skip

    got = run("x.jsonl")
    assert (got.returncode, got.stderr.count("\n")) == (78, 1)
    assert "FLEET_REDIS_URL is not set" in got.stderr
    got = run("x.jsonl", FLEET_REDIS_URL="redis://127.0.0.1:1/0", FLEET_MAX_BACKLOG="none")
    assert (got.returncode, got.stderr.count("\n")) == (78, 1)
    assert "FLEET_MAX_BACKLOG" in got.stderr
