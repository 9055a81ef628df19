"""What a worker counts, says and leaves behind when an attempt ends without a result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from structlog.testing import capture_logs

from common.failures import FailureKind, FleetError
from common.llm.types import ModelUnavailable
from common.metrics import Metrics
from common.queue.connection import Server
from common.queue.control import Control, Who
from common.queue.scene_queue import NewTask, SceneQueue
from common.serve import Health
from common.settings import load
from common.store import Store
from common.task import Assignment
from tests.chaos.scene import NapScene, executions
from tests.common.stored import made
from tests.helpers import eventually, task, units
from tests.workers.episodes import Script, call, says
from workers.policies.base import PolicyFactory
from workers.worker import Worker

SPENT = FleetError("the run's budget is spent", kind=FailureKind.BUDGET_EXCEEDED)
GONE = ModelUnavailable("no answer")


def plays(*scripts: Script | Exception) -> PolicyFactory:
    """One script for each attempt, in their order."""
    left = iter(scripts)

    def policy(_: Assignment, *, attempt_id: str) -> Script:
        script = next(left)
        if isinstance(script, Exception):
            raise script
        return script

    return policy  # type: ignore[return-value]


@asynccontextmanager
async def working(server: Server, folder: Path, policies: PolicyFactory) -> AsyncIterator[Metrics]:
    """A worker of the scene `code`, in this process."""
    settings = load(
        redis_url=server.url, output=folder, lease=1.0, concurrency=1, retry_delay=0.05,
        drain_grace=5.0,
    )  # fmt: skip
    metrics, draining = Metrics(), asyncio.Event()
    worker = Worker(
        settings, server, Store(folder), [NapScene("code", folder / "log")], policies, metrics,
        Health(), consumer="w",
    )  # fmt: skip
    running = asyncio.create_task(worker.run(draining))
    try:
        yield metrics
    finally:
        draining.set()
        await asyncio.wait_for(running, 20)


async def lost_attempt(server: Server, store: Store) -> str:
    """Queue a task of which an owner left a file, and no commit; returns the attempt's id."""
    queue = SceneQueue(server, "code", consumer="gone")
    await queue.publish([units(task())])
    [lease] = await queue.take(1)
    written = made("t", lease.attempt_id)
    assignment = written.assignment.model_copy(update={"task": task()})
    store.write_attempt(written.model_copy(update={"assignment": assignment}))
    await queue.release([lease])
    assert store.attempts_of("t") == [lease.attempt_id]
    return lease.attempt_id


# -- what is left behind --------------------------------------------------------------------------


async def test_a_retry_sweeps_what_was_lost_on_its_entry_and_stays_itself(
    server: Server, tmp_path: Path
) -> None:
    store, queue = Store(tmp_path), SceneQueue(server, "code")
    lost = await lost_attempt(server, store)
    async with working(server, tmp_path, plays(Script(GONE), Script(GONE), Script())) as metrics:
        await eventually(lambda: _counted(queue, "committed"), "the third attempt is committed")
    first, second, third = store.attempts_of("t")
    assert lost not in (first, second, third)
    assert _entry(first) == _entry(lost)  # evidence, of the very entry
    failures = [store.read_attempt("t", one).failure for one in (first, second, third)]
    assert [f.kind.value if f else None for f in failures] == ["network_error"] * 2 + [None]
    assert metrics.registry.get_sample_value(
        "fleet_attempts_swept_total", {"scene": "code"}
    ) == 1  # fmt: skip


async def test_a_dead_letter_sweeps_what_was_lost_on_its_entry(
    server: Server, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    await lost_attempt(server, store)
    async with working(server, tmp_path, plays(SPENT)):
        await eventually(lambda: store.attempts_of("t") == [], "nothing is left of it")
    assert (await SceneQueue(server, "code").counts())["dead_work"] == 1


async def test_a_cancelled_task_sweeps_what_was_lost_on_its_entry(
    server: Server, tmp_path: Path
) -> None:
    store, nap = Store(tmp_path), says(call("nap", seconds=60))
    await lost_attempt(server, store)
    async with working(server, tmp_path, plays(Script(nap))):
        await eventually(lambda: bool(executions(tmp_path / "log")), "it naps")
        await Control(server, "code").cancel("t", Who("p"))
        await eventually(lambda: store.attempts_of("t") == [], "nothing is left of it")


async def _counted(queue: SceneQueue, name: str) -> bool:
    return (await queue.counts())[name] > 0


def _entry(attempt_id: str) -> str:
    return attempt_id.rsplit("-", 2)[0]


# -- what is counted and said ---------------------------------------------------------------------


async def _ends_dead(server: Server, folder: Path, kind: str) -> dict[str, object]:
    """Let a worker end the one task there is; returns what it said at the end, once it counted."""
    queue, labels = SceneQueue(server, "code"), {"scene": "code", "reason": kind}
    with capture_logs() as logs:
        async with working(server, folder, plays(SPENT)) as metrics:
            await eventually(lambda: _counted(queue, "dead_work"), "it is a dead letter")
    assert metrics.registry.get_sample_value("fleet_dead_letters_total", labels) == 1
    [said] = [row for row in logs if row["event"] == "attempt.finished"]
    assert (said["task_id"], said["outcome"], said["error_type"]) == ("t", "dead", kind)
    return dict(said)


async def test_a_task_that_cannot_be_paid_for_is_counted_and_said(
    server: Server, tmp_path: Path
) -> None:
    await SceneQueue(server, "code").publish([units(task())])
    said = await _ends_dead(server, tmp_path, "budget_exceeded")
    assert said["error"] == "the run's budget is spent"


@pytest.mark.parametrize("surprise", ["x", "x" * 5000])
async def test_a_task_that_cannot_be_read_is_counted_and_said(
    server: Server, tmp_path: Path, surprise: str
) -> None:
    good = units(task())
    payload = orjson.loads(good.payloads[0])
    payload["task"][surprise] = 1
    bad = NewTask(good.task_id, good.lane, [orjson.dumps(payload)])
    await SceneQueue(server, "code").publish([bad])
    said = str((await _ends_dead(server, tmp_path, "invalid_task"))["error"])
    assert surprise[:100] in said
    assert len(said) <= 300
