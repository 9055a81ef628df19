"""The queue server goes away in four ways; the fleet says so, waits, and goes on by itself.

Real servers, a real sentinel, and real dispatcher, worker and reviewer processes; only the scene is
a stand-in (tests/chaos/scene.py), so that executions can be counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from common.process import free_port
from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer
from common.queue.scene_queue import Counts, SceneQueue
from tests.chaos.scene import executions, line
from tests.chaos.sentinel import PASSWORD, SENTINEL_PASSWORD, Pair
from tests.e2e.fleet import attempts, process
from tests.e2e.fleet import fleet as fleet_command
from tests.helpers import eventually

WORKERS = 2
SLOTS = 4
LEASE = 3.0


class Fleet:
    """A dispatcher, workers and a reviewer over one tasks file. Nobody is started twice."""

    def __init__(self, folder: Path, url: str, scene: str = "code") -> None:
        self.folder, self.scene = folder, scene
        self.tasks = folder / "tasks.jsonl"
        self.executed = folder / "executed"
        self.server = Server(url, patience=60)
        self.queue = SceneQueue(self.server, scene)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports: dict[str, int] = {}
        self._stack = ExitStack()
        self._url = url
        self._written = 0

    async def __aenter__(self) -> Self:
        self.tasks.touch()
        for n in range(WORKERS):
            self._start(f"worker{n}", "tests.chaos.worker", self.executed, self.scene,
                        "--concurrency", SLOTS)  # fmt: skip
        self._start("reviewer", "reviewer", self.scene)
        self._start("dispatcher", "dispatcher", self.tasks)
        await eventually(lambda: all(map(self.ready, self.processes)), "all are ready", within=40)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for running in self.processes.values():
            running.terminate()  # all at once; the stack waits for each
        await asyncio.to_thread(self._stack.close)
        await self.server.close()

    def _start(self, name: str, *argv: Any) -> None:
        self._ports[name] = free_port()
        self.processes[name] = self._stack.enter_context(
            process(
                *argv, log=self.folder / f"{name}.log", FLEET_REDIS_URL=self._url,
                FLEET_OUTPUT=self.folder / "output", FLEET_LEASE=LEASE,
                FLEET_METRICS_PORT=self._ports[name], FLEET_MAX_DELIVERIES=50,
            )
        )  # fmt: skip

    def write(self, count: int, *, seconds: float = 0.2, **more: Any) -> None:
        """Append ``count`` tasks to the file."""
        with self.tasks.open("a") as file:
            for n in range(self._written, self._written + count):
                file.write(json.dumps(line(f"t{n:04d}", self.scene, seconds, **more)) + "\n")
        self._written += count

    def ready(self, name: str) -> bool:
        """Does /readyz of this process say so?"""
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._ports[name]}/readyz", timeout=5
            ) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError:
            return False
        except OSError:
            return False

    async def until_ready(self, yes: bool) -> None:
        async def so() -> bool:
            names = list(self.processes)
            states = await asyncio.gather(*(asyncio.to_thread(self.ready, n) for n in names))
            return all(state is yes for state in states)

        await eventually(so, f"/readyz of all says {'ready' if yes else 'not ready'}", within=30)

    def said(self, name: str, event: str) -> int:
        """How often a process has logged ``event``."""
        text = (self.folder / f"{name}.log").read_text(errors="replace")
        return sum(f'"{event}"' in row for row in text.splitlines())

    async def until_said(self, event: str, names: Iterable[str], times: int = 1) -> None:
        for name in names:
            await eventually(
                lambda name=name: self.said(name, event) >= times, f"{name} says {event}", within=40
            )

    async def until_counts(self, true: Any, what: str, within: float = 90) -> Counts:
        async def so() -> bool:
            self.none_has_ended()
            return bool(true(await self.queue.counts()))

        await eventually(so, what, within=within)
        return await self.queue.counts()

    async def until_done(self, count: int) -> Counts:
        return await self.until_counts(
            lambda c: c["tasks"] == count and c.open_tasks == 0, f"all {count} tasks have ended"
        )

    def none_has_ended(self) -> None:
        gone = {n: p.returncode for n, p in self.processes.items() if p.poll() is not None}
        assert gone == {}

    async def assert_each_exactly_once(self, count: int, *, again: int) -> None:
        """``again``: how many may have run a second time, because of what was in flight."""
        counts = await self.queue.counts()
        assert counts.unaccounted == 0
        assert (counts["committed"], counts["reviewed"]) == (count, count)
        assert (counts["tasks_accepted"], counts["dead"]) == (count, 0)
        assert (counts.waiting, counts.running, counts.delayed, counts.reviewing) == (0, 0, 0, 0)
        runs = executions(self.executed)
        assert {run.task_id for run in runs} == {f"t{n:04d}" for n in range(count)}
        assert len(runs) - count <= again, "only what was in flight runs again"
        self.none_has_ended()


def no_secret_was_logged(folder: Path) -> None:
    for log in folder.glob("*.log"):
        text = log.read_text(errors="replace")
        for secret in (PASSWORD, SENTINEL_PASSWORD):
            assert secret not in text, log.name


# -- killed and restarted ------------------------------------------------------------------------


async def _killed(folder: Path, *, tasks: int, kills: int, down: float) -> None:
    valkey = EmbeddedServer(folder / "valkey")
    valkey.start()
    try:
        async with Fleet(folder, valkey.url) as fleet:
            for kill in range(kills):
                fleet.write(tasks // kills)
                goal = tasks * kill // kills + tasks // (2 * kills)
                await fleet.until_counts(
                    lambda c, goal=goal: c["committed"] >= goal, "half of them are committed"
                )
                await asyncio.to_thread(valkey.kill)
                await fleet.until_said("queue.server_away", fleet.processes, kill + 1)
                await fleet.until_ready(False)
                await asyncio.sleep(down)
                fleet.none_has_ended()
                await asyncio.to_thread(valkey.start)
                began = time.monotonic()
                await fleet.until_ready(True)
                print(f"all ready {time.monotonic() - began:.1f} s after the restart")
            await fleet.until_done(tasks)
            # Leases outlive the outage: heartbeats renew before anybody may take over.
            await fleet.assert_each_exactly_once(tasks, again=0)
            await fleet.until_said("queue.server_back", fleet.processes)
    finally:
        valkey.stop()


async def test_a_killed_server_costs_nothing_and_no_process_ends(tmp_path: Path) -> None:
    await _killed(tmp_path, tasks=80, kills=2, down=0.0)


@pytest.mark.chaos
async def test_a_server_killed_six_times_and_away_for_long_costs_nothing(tmp_path: Path) -> None:
    await _killed(tmp_path, tasks=480, kills=6, down=3 * LEASE)


async def _frozen(folder: Path, *, freezes: int) -> None:
    valkey = EmbeddedServer(folder / "valkey")
    valkey.start()
    # Fewer than there are slots: workers with a free one keep looking for silent owners.
    few = WORKERS * SLOTS - 2
    try:
        async with Fleet(folder, valkey.url) as fleet:
            for _ in range(freezes):
                fleet.write(few, seconds=1.5 * LEASE)
                await fleet.until_counts(lambda c: c.running == few, "all are under way")
                os.kill(valkey.pid, signal.SIGSTOP)
                await asyncio.sleep(1.5 * LEASE)
                os.kill(valkey.pid, signal.SIGCONT)
                await fleet.until_counts(lambda c: c.open_tasks == 0, "all have ended")
            await fleet.assert_each_exactly_once(freezes * few, again=0)
    finally:
        valkey.stop()


async def test_a_server_frozen_for_longer_than_a_lease_costs_nobody_a_lease(tmp_path: Path) -> None:
    await _frozen(tmp_path, freezes=1)


@pytest.mark.chaos
async def test_a_server_frozen_ten_times_costs_nobody_a_lease(tmp_path: Path) -> None:
    await _frozen(tmp_path, freezes=10)


# -- flushed -------------------------------------------------------------------------------------


async def _flushed(folder: Path, *, tasks: int, flushes: int) -> None:
    valkey = EmbeddedServer(folder / "valkey")
    valkey.start()
    try:
        async with Fleet(folder, valkey.url) as fleet:
            for flush in range(flushes):
                # Of different lengths, so that some are under way at any moment.
                for n in range(tasks // flushes):
                    fleet.write(1, seconds=0.5 + n % 7 * 0.3)
                await fleet.until_counts(
                    lambda c: c["committed"] >= 8 and c.running >= SLOTS, "it is busy"
                )
                await fleet.server.client.flushall()
                await fleet.server.client.function_flush()
                # One line for each scene whose position it finds gone.
                await fleet.until_said("queue.forgotten", ["dispatcher"], flush + 1)
                fleet.none_has_ended()
            fleet.write(10)
            total = tasks // flushes * flushes + 10

            def accepted() -> dict[str, int]:
                found = attempts(folder / "output")
                return {t: sum(r is not None for _, r in rows) for t, rows in found.items()}

            async def all_accepted() -> bool:
                fleet.none_has_ended()
                times = await asyncio.to_thread(accepted)
                return len(times) == total and all(times.values())

            await eventually(all_accepted, "every task has a reviewed result", within=90)
            counts = await fleet.until_counts(lambda c: c.open_tasks == 0, "all have ended")
            assert counts.unaccounted == 0
            assert counts["committed"] == counts["reviewed"] == counts["tasks"]
            twice = [t for t, times in accepted().items() if times > 1]
            print(f"{counts['tasks']} of {total} known after the flush; reviewed twice: {twice}")
            assert twice == []
            await fleet.until_ready(True)
    finally:
        valkey.stop()


async def test_after_a_flush_what_was_lost_runs_again_and_nothing_else(tmp_path: Path) -> None:
    await _flushed(tmp_path, tasks=40, flushes=1)


@pytest.mark.chaos
async def test_after_five_flushes_what_was_lost_has_run_again(tmp_path: Path) -> None:
    await _flushed(tmp_path, tasks=400, flushes=5)


# -- failed over ---------------------------------------------------------------------------------


async def _failed_over(folder: Path, *, binary: str | None, tasks: int) -> None:
    async with Pair(folder, binary=binary) as pair, Fleet(folder, pair.url) as fleet:
        fleet.write(tasks // 2)
        await fleet.until_counts(lambda c: c["committed"] >= tasks // 4, "a quarter is committed")
        await asyncio.to_thread(pair.master.kill)
        began = time.monotonic()
        assert await fleet.server.fcall("promote", _nothing(fleet), (1,)) == 0
        print(f"writes go to the new master after {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < 20
        fleet.write(tasks // 2)
        await fleet.until_ready(True)
        await fleet.until_done(tasks)
        # What the replica had not heard of yet runs again, at most what was under way.
        await fleet.assert_each_exactly_once(tasks, again=2 * WORKERS * SLOTS)
        await fleet.until_said("queue.server_back", ["dispatcher", "reviewer"])
        for name in fleet.processes:
            assert fleet.said(name, "queue.doubtful") == 1  # asynchronous replicas
        said = await asyncio.to_thread(
            fleet_command, "status", "--json", "-o", folder / "output", FLEET_REDIS_URL=pair.url
        )
        assert json.loads(said.stdout)[fleet.scene]["tasks_accepted"] == tasks, said.stderr
    no_secret_was_logged(folder)


def _nothing(fleet: Fleet) -> tuple[str, ...]:
    return (fleet.queue.keys.prefix + "none:", "none:hi", "none:mid", "none:lo")


async def test_a_fail_over_is_followed_and_nothing_is_lost_valkey(tmp_path: Path) -> None:
    await _failed_over(tmp_path, binary=None, tasks=60)


@pytest.mark.chaos
async def test_a_fail_over_is_followed_and_nothing_is_lost_redis7(tmp_path: Path) -> None:
    await _failed_over(tmp_path, binary=shutil.which("redis-server"), tasks=200)


@pytest.mark.chaos
async def test_a_demoted_master_that_comes_back_gets_no_more_writes(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair, Fleet(tmp_path, pair.url) as fleet:
        fleet.write(200)
        await fleet.until_counts(lambda c: c["committed"] >= 50, "some are committed")
        pair.demote()
        await fleet.until_counts(lambda c: c["committed"] >= 100, "commits go on")
        fleet.write(100)
        await fleet.until_done(300)
        await fleet.assert_each_exactly_once(300, again=2 * WORKERS * SLOTS)
    no_secret_was_logged(tmp_path)


# -- full ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["valkey", "redis7"])
async def test_a_full_server_is_drained_and_filled_again_when_there_is_room(
    tmp_path: Path, kind: str
) -> None:
    server = EmbeddedServer(
        tmp_path / "server", binary=None if kind == "valkey" else shutil.which("redis-server")
    )
    server.start()
    try:
        async with Fleet(tmp_path, server.url) as fleet:
            fleet.write(40, metadata={"fill": "x" * 20_000})
            await fleet.until_counts(lambda c: c["tasks"] == 40, "all are queued")
            await fleet.server.client.config_set("maxmemory", 1)
            fleet.write(20)
            await fleet.until_said("queue.memory_full", ["dispatcher"])
            counts = await fleet.until_counts(lambda c: c.open_tasks == 0, "all queued ones end")
            assert (counts["tasks"], counts["tasks_accepted"]) == (40, 40)
            await fleet.server.client.config_set("maxmemory", 0)
            await fleet.until_done(60)
            await fleet.assert_each_exactly_once(60, again=0)
    finally:
        server.stop()


async def test_a_server_too_small_for_the_file_takes_it_in_portions(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "server")
    server.start()
    try:
        async with Fleet(tmp_path, server.url) as fleet:
            used = (await fleet.server.client.info("memory"))["used_memory"]
            await fleet.server.client.config_set("maxmemory", used + 700_000)
            fleet.write(120, seconds=0.05, metadata={"fill": "x" * 50_000})
            await fleet.until_said("queue.memory_full", ["dispatcher"])
            await fleet.until_done(120)
            await fleet.assert_each_exactly_once(120, again=0)
    finally:
        server.stop()
