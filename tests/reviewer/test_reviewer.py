"""The reviewer as a process sees it: one bad attempt file must not hold up the others."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import orjson
import pytest

from common.failures import LeaseLost
from common.metrics import Metrics
from common.queue.committer import Committer, Done
from common.queue.connection import Server
from common.queue.scene_queue import SceneQueue
from common.review import DecisionName, JudgeReport, Review
from common.serve import Health
from common.settings import load
from common.store import Store
from common.trajectory import Trajectory, Verdict
from reviewer.counsel import Counsel
from reviewer.reviewer import Reviewer
from reviewer.rubric import Rubric
from tests.exporters.attempts import attempt
from tests.helpers import eventually, task, units
from tests.reviewer.running import reviewing


async def test_missing_and_altered_attempts_end_as_dead_letters_and_hold_up_nobody(
    server: Server, tmp_path: Path
) -> None:
    settings = load(lease=0.4, max_deliveries=2, redis_url=server.url, output=tmp_path)
    store = Store(tmp_path)
    queue = SceneQueue(server, "code", consumer="w")
    names = [f"bad{i}" for i in range(17)] + ["altered", "good"]
    await queue.publish([units(task(name)) for name in names])
    committer = Committer(queue)
    for lease in await queue.take(len(names)):
        event = {"attempt_id": lease.attempt_id, "sha256": "0" * 64}
        if lease.task_id in ("good", "altered"):
            digest = store.write_attempt(_attempt_of(lease.task_id, lease.attempt_id))
            event["sha256"] = digest if lease.task_id == "good" else "0" * 64
        await committer.commit(lease, Done(orjson.dumps(event)))

    draining = asyncio.Event()
    reviewer = Reviewer(settings, server, store, ["code"], Metrics(), Health(), consumer="r")
    running = asyncio.create_task(reviewer.run(draining))

    async def settled() -> bool:
        return (await queue.counts()).open_tasks == 0

    await eventually(settled, "every task ends", within=30)
    draining.set()
    await asyncio.wait_for(running, 20)
    counts = await queue.counts()
    assert (counts["tasks_accepted"], counts["tasks_dead"]) == (1, 18)
    assert counts.unaccounted == 0


async def two_files_of_one_entry(server: Server, store: Store) -> str:
    """Leave the files of a killed owner and of who took over and won; returns the winner's id."""
    first = SceneQueue(server, "code", consumer="killed")
    second = SceneQueue(server, "code", consumer="winner")
    await first.publish([units(task())])
    [lost] = await first.take(1)
    [won] = (await second.reclaim(1, lease=0.0, max_deliveries=3)).leases
    store.write_attempt(_attempt_of("t", lost.attempt_id))
    digest = store.write_attempt(_attempt_of("t", won.attempt_id))
    event = {"attempt_id": won.attempt_id, "sha256": digest}
    await Committer(second).commit(won, Done(orjson.dumps(event)))
    assert store.attempts_of("t") == [lost.attempt_id, won.attempt_id]
    return won.attempt_id


async def test_what_a_killed_owner_left_is_swept_with_the_review_of_the_winner(
    server: Server, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    won = await two_files_of_one_entry(server, store)
    async with reviewing(server, tmp_path):
        await eventually(lambda: store.attempts_of("t") == [won], "the loser is gone")


async def test_a_reviewer_killed_at_any_moment_leaves_no_sweep_undone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the review is settled nobody comes back to it."""
    store, settling = Store(tmp_path), asyncio.Event()
    won = await two_files_of_one_entry(server, store)
    kept: list[list[str]] = []

    async def commit(*_: object) -> None:
        kept.append(store.attempts_of("t"))
        settling.set()
        raise LeaseLost("as if it had been killed here")

    monkeypatch.setattr(Committer, "commit", commit)
    async with reviewing(server, tmp_path):
        await asyncio.wait_for(settling.wait(), 20)
    assert kept[0] == [won]


async def test_reviewers_of_the_past_are_forgotten(server: Server, tmp_path: Path) -> None:
    for n in range(3):
        gone = SceneQueue(server, "code", consumer=f"gone-{n}", stage="review")
        await gone.take(1)
    forgotten: list[int] = []
    real = SceneQueue.gc

    async def gc(self: SceneQueue) -> int:  # an hour of silence, at once
        forgotten.append(await real(self, idle=0.0))
        return forgotten[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SceneQueue, "gc", gc)
        async with reviewing(server, tmp_path):
            await eventually(lambda: bool(forgotten), "it looks when it starts")
    assert forgotten[0] == 3


def _attempt_of(task_id: str, attempt_id: str) -> Trajectory:
    made = attempt()
    assignment = made.assignment.model_copy(update={"task": task(task_id)})
    return made.model_copy(
        update={"task_id": task_id, "attempt_id": attempt_id, "assignment": assignment}
    )


def test_a_reviewer_that_comes_late_changes_nothing_that_was_settled(tmp_path: Path) -> None:
    """Whatever it would have decided: what a later delivery led to is what was settled."""
    store = Store(tmp_path)

    def said(by: str, decision: DecisionName, delivery: int) -> Review:
        return Review(
            task_id="t", attempt_id="r1-s0-1-0-d1-a", revision=1, sample=0, passed=True, score=90,
            decision=decision, reason="", rubric="x", reviewed_at=time.time(), reviewer=by,
            delivery=delivery,
        )  # fmt: skip

    def kept() -> str:
        review = store.read_review("t", "r1-s0-1-0-d1-a")
        assert review is not None
        return review.reviewer

    store.write_review(said("killed", "iterate", 1))
    store.write_review(said("took-over", "accepted", 2))
    assert kept() == "took-over", "what was written and never settled is replaced"
    for decision in ("accepted", "iterate", "waiting"):
        store.write_review(said("late", decision, 1))
        assert kept() == "took-over"


class Absent(Counsel):
    """Its judge never answers."""

    silent = False

    async def report(self, trajectory: Trajectory, rubric: Rubric) -> JudgeReport | None:
        if trajectory.verdict.passed:
            await asyncio.Event().wait()
        return None


async def test_reviews_that_wait_for_a_judge_hold_up_none_that_needs_none(
    server: Server, tmp_path: Path
) -> None:
    settings = load(lease=2.0, redis_url=server.url, output=tmp_path, drain_grace=0.2)
    store, queue = Store(tmp_path), SceneQueue(server, "code", consumer="w")
    names = [f"passed{n}" for n in range(40)] + ["failed0", "failed1"]
    await queue.publish([units(task(name, max_iterations=1)) for name in names])
    committer = Committer(queue)
    for lease in await queue.take(len(names)):
        made = _attempt_of(lease.task_id, lease.attempt_id)
        if lease.task_id.startswith("failed"):
            made = made.model_copy(update={"verdict": Verdict(passed=False, reward=0.0)})
        event = {"attempt_id": lease.attempt_id, "sha256": store.write_attempt(made)}
        await committer.commit(lease, Done(orjson.dumps(event)))
    draining = asyncio.Event()
    reviewer = Reviewer(
        settings, server, store, ["code"], Metrics(), Health(), consumer="r", counsel=Absent()
    )
    running = asyncio.create_task(reviewer.run(draining))

    async def reviewed() -> bool:
        return (await queue.counts())["reviewed"] == 2

    await eventually(reviewed, "what failed is reviewed", within=20)
    draining.set()
    await asyncio.wait_for(running, 20)
    # What waited is handed back, uncounted, for whoever comes next.
    again = SceneQueue(server, "code", consumer="next", stage="review")
    leases = await again.take(100)
    assert len(leases) == 40
    assert {lease.deliveries for lease in leases} == {1}
