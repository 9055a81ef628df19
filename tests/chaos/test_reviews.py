"""Reviewers die in the middle of their work: no review is lost, none is done twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import orjson

from common.audit import read
from common.queue.committer import Committer, Done
from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer
from common.queue.keys import Keys
from common.queue.scene_queue import NewTask, SceneQueue
from common.store import Store
from common.task import Assignment, Task
from common.trajectory import CheckResult, Verdict
from tests.chaos.test_kills import Killed
from tests.e2e.fleet import end, environment
from tests.exporters.attempts import attempt
from tests.helpers import entries_of, eventually, task

ATTEMPTS = 500
KILLS = 10


def tasks() -> list[Task]:
    """Tasks of one sample and of five, some of which pass at once and some never."""
    checks = [{"type": "stdout", "expected": "1"}]
    singles = [task(f"one{n}", checks=checks) for n in range(ATTEMPTS // 2)]
    groups = [task(f"five{n}", checks=checks, samples=5) for n in range(ATTEMPTS // 10)]
    return [*singles, *groups]


async def attempt_all(server: Server, output: Path) -> None:
    """Take everything there is and commit an attempt at it, as workers do."""
    queue, store = SceneQueue(server, "code", consumer="w"), Store(output)
    committer, number = Committer(queue), 0
    while leases := await queue.take(64):
        for lease in leases:
            assignment = Assignment.model_validate_json(lease.payload)
            passed, number = number % 3 != 0, number + 1
            checks = (CheckResult(id="c", passed=passed, reward=float(passed)),)
            made = attempt(
                task_id=lease.task_id, attempt_id=lease.attempt_id, assignment=assignment,
                revision=1, sample=assignment.sample,
                verdict=Verdict(passed=passed, reward=float(passed), checks=checks),
            )  # fmt: skip
            event = {"attempt_id": lease.attempt_id, "sha256": store.write_attempt(made)}
            await committer.commit(lease, Done(orjson.dumps(event)))


async def test_ten_kills_in_500_reviews_lose_and_double_nothing(tmp_path: Path) -> None:
    valkey = EmbeddedServer(tmp_path / "valkey")
    valkey.start()
    server, out = Server(valkey.url, patience=30), tmp_path / "out"
    queue = SceneQueue(server, "code")
    env = environment(
        FLEET_REDIS_URL=valkey.url, FLEET_OUTPUT=out, FLEET_LEASE="1", FLEET_MAX_DELIVERIES=50
    )
    given = tasks()
    await queue.publish(
        [NewTask.of([Assignment(task=one, sample=n) for n in range(one.samples)]) for one in given]
    )
    await attempt_all(server, out)
    reviewers = [Killed(["reviewer", "code"], tmp_path / f"reviewer{n}", env) for n in range(2)]
    try:
        for n in range(KILLS):
            goal = (n + 1) * ATTEMPTS // (KILLS + 2)

            async def under_way(goal: int = goal) -> bool:
                return (await queue.counts())["reviewed"] >= goal

            await eventually(under_way, f"{goal} reviews", within=60)
            reviewers[n % 2].kill()

        async def done() -> bool:
            return (await queue.counts())["reviewed"] >= ATTEMPTS

        await eventually(done, "every attempt is reviewed", within=90)
        assert sum(r.kills for r in reviewers) == KILLS
        counts = await queue.counts()
    finally:
        await asyncio.gather(*(asyncio.to_thread(end, r.process) for r in reviewers))
    try:
        settled = await entries_of(server, Keys("code").decisions)
        iterated = await entries_of(server, queue.keys.lanes[1])
    finally:
        await server.close()
        valkey.stop()
    assert counts["reviewed"] == counts["committed"] == ATTEMPTS
    assert (counts["dead"], counts.reviewing, counts["held"], counts.unaccounted) == (0, 0, 0, 0)
    # Each attempt was decided once, and each decision that sends a task back did so once.
    once = Counter((row["id"], row["u"]) for row in settled)
    assert len(once) == ATTEMPTS and set(once.values()) == {1}
    assert counts["units"] == ATTEMPTS + counts["iterate"]
    back = Counter((row["id"], row["u"]) for row in iterated)
    assert len(back) == counts["iterate"] > 0 and set(back.values()) == {1}
    told: Counter[tuple[Any, Any]] = Counter((r["task_id"], r["unit"]) for r in read(out))
    assert told == once, "the audit log outlives all of them, and says everything once"
    store = Store(out)
    for one in given:
        for attempt_id in store.attempts_of(one.task_id):
            review = store.read_review(one.task_id, attempt_id)
            assert review is not None
            if one.samples > 1:
                assert review.group is not None and review.group.size == one.samples
