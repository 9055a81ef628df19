"""Kill any process at any instant: every task still ends with exactly one committed attempt."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer
from common.queue.scene_queue import SceneQueue
from tests.e2e.fleet import attempts, end, environment, printing
from workers.sandboxes.nsjail.provider import NsjailProvider

TASKS = 200
WORKERS = 4
DEADLINE = 240.0


class Killed:
    """A process that is killed without warning and started again at once."""

    def __init__(self, argv: list[str], log: Path, env: dict[str, str]) -> None:
        self._argv, self._log, self._env = [sys.executable, "-m", *argv], log, env
        self.kills = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._argv, env=self._env, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        self.kills += 1
        self.process = self._start()


async def test_200_tasks_survive_kills_of_every_process(tmp_path: Path) -> None:
    rng = random.Random(20)
    valkey = EmbeddedServer(tmp_path / "valkey")
    valkey.start()
    server = Server(valkey.url, patience=30)
    out = tmp_path / "out"
    env = environment(
        FLEET_REDIS_URL=valkey.url, FLEET_OUTPUT=out,
        # Bad luck may kill the same task's worker many times; that is not its fault here.
        FLEET_MAX_DELIVERIES=50,
    )  # fmt: skip
    tasks = tmp_path / "tasks.jsonl"
    tasks.touch()
    processes = [
        Killed(["workers", "code", "--concurrency", "4", "--no-model"], tmp_path / f"w{i}", env)
        for i in range(WORKERS)
    ]
    workers = list(processes)
    dispatcher = Killed(["dispatcher", str(tasks)], tmp_path / "dispatcher", env)
    reviewer = Killed(["reviewer"], tmp_path / "reviewer", env)
    processes += [dispatcher, reviewer]
    queue = SceneQueue(server, "code")
    written, turn, began = 0, 0, time.monotonic()
    try:
        while True:
            counts = await queue.counts()
            if written == TASKS and counts["tasks"] == TASKS and counts.open_tasks == 0:
                break
            assert time.monotonic() - began < DEADLINE, (counts, tmp_path)
            # The file grows while everything around it dies.
            for n in range(written, min(written + 20, TASKS)):
                reference = {
                    "actions": [
                        {"tool": "run_shell", "arguments": {"command": "sleep 0.4; echo 42"}}
                    ]
                }
                line = printing(f"t{n:03d}", agent="oracle", reference=reference)
                with tasks.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                written = n + 1
            await asyncio.sleep(1.0)
            turn += 1
            rng.choice(workers).kill()
            if turn in (3, 6):
                dispatcher.kill()
            if turn in (4, 8):
                reviewer.kill()
        assert sum(w.kills for w in workers) >= 5
        assert (dispatcher.kills, reviewer.kills) == (2, 2)

        counts = await queue.counts()
        assert counts.unaccounted == 0
        assert counts["committed"] == TASKS
        assert counts["reviewed"] == TASKS
        assert (counts["tasks_accepted"], counts["dead"]) == (TASKS, 0)
        assert counts["reclaimed"] > 0  # some died with work in hand, or this proves nothing
        for n in range(TASKS):
            ledger = await server.client.hgetall(queue.keys.ledger(f"t{n:03d}"))
            assert ledger[b"st"] == b"accepted"
    finally:
        await asyncio.gather(*(asyncio.to_thread(end, p.process) for p in processes))
        await server.close()
        valkey.stop()

    found = attempts(out)
    assert len(found) == TASKS
    for task, written_attempts in found.items():
        # A killed worker may leave the file of an attempt it never committed; only the committed
        # one is reviewed, and so only it is visible to exporters.
        reviewed = [t for t, review in written_attempts if review is not None]
        assert len(reviewed) == 1, task
        assert reviewed[0].success

    jails = NsjailProvider()
    await jails.reap()
    assert await jails.reap() == 0
    await jails.close()
