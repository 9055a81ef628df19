"""`fleet up` is asked to drain: those who heard end by themselves, and nothing is queued."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import time
from pathlib import Path

import redis

from common.llm.fetch import place
from common.llm.weights import DEFAULT
from common.queue.connection import Server
from common.queue.control import Who, drain
from common.queue.embedded import EmbeddedServer
from fleet.children import Child, end_in_order
from tests.e2e.fleet import counters, fleet, printing, process, wait_until, write_tasks

ENDS_BY_ITSELF = "import time; time.sleep(2)"
NEVER_ENDS = "import time; time.sleep(300)"


def child(name: str, code: str, folder: Path) -> Child:
    return Child(name, [sys.executable, "-c", code], folder / f"{name}.log", dict(os.environ))


async def test_only_those_that_listened_when_the_order_came_are_waited_for(
    tmp_path: Path, valkey: EmbeddedServer
) -> None:
    server = Server(valkey.url)
    heard = [child(name, ENDS_BY_ITSELF, tmp_path) for name in ("worker-1", "reviewer")]
    deaf = [child(name, NEVER_ENDS, tmp_path) for name in ("dispatcher", "worker-2", "model")]
    try:
        await server.check()
        for one in heard:
            await one.start()
            one.started -= 60  # they have run for a minute
        await drain(server, Who("a person"))
        for one in deaf:  # restarted, after a crash
            await one.start()
        began = time.monotonic()
        await end_in_order([*heard, *deaf], server, grace=60, asked=True)
        assert time.monotonic() - began < 20
    finally:
        for one in (*heard, *deaf):
            one.kill()
        await server.client.flushall()
        await server.close()
    codes = [one.process.returncode for one in (*heard, *deaf) if one.process is not None]
    assert codes == [0, 0, *[-signal.SIGTERM] * 3]
    assert not any(one.broken for one in (*heard, *deaf))


async def test_a_process_that_crashed_or_was_killed_is_broken(tmp_path: Path) -> None:
    for code, ended in (("raise SystemExit(3)", 3), (NEVER_ENDS, -signal.SIGKILL), ("", 0)):
        one = child("worker-1", code, tmp_path)
        await one.start()
        assert one.process is not None
        if code == NEVER_ENDS:
            one.process.kill()
        async with asyncio.timeout(20):
            await one.process.wait()
        assert one.broken == ended


def test_a_fleet_drained_while_its_model_loads_queues_nothing_and_ends_at_once(
    tmp_path: Path, valkey: EmbeddedServer
) -> None:
    out, log, cache = tmp_path / "out", tmp_path / "log", tmp_path / "cache"
    tasks = write_tasks(tmp_path / "t.jsonl", [printing("early")])
    models = place(cache, DEFAULT[0]).parent
    models.mkdir(parents=True)
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    env = {"FLEET_REDIS_URL": valkey.url, "FLEET_CACHE": cache, "FLEET_DRAIN_GRACE": 60}
    up = ("up", tasks, "-o", out, "--scene", "code")
    with (models / ".lock").open("w") as lock:
        # Somebody else fetches the weights, it seems: the model does not get ready.
        fcntl.flock(lock, fcntl.LOCK_EX)
        with process("fleet", *up, log=log, **env, FLEET_LLM_PROVIDER="embedded") as running:
            logs = [out / f".fleet/logs/{name}.log" for name in ("worker-1", "reviewer")]
            wait_until(
                lambda: all(p.exists() and "started" in p.read_text() for p in logs),
                "worker and reviewer listen", within=40,
            )  # fmt: skip
            told = fleet("drain", "--timeout", 40, "--why", "wrong file", **env)
            assert told.returncode == 0, told.stderr
            assert "1 reviewer, 1 up, 1 worker" in told.stdout
            assert running.wait(10) == 0, log.read_text()
    assert "exit code" not in log.read_text()
    assert not (out / ".fleet/logs/dispatcher.log").exists()
    assert counters(out, **env).get("code", {}).get("tasks", 0) == 0
