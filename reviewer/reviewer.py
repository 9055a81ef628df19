"""The reviewer: take an event → read the attempt → review → write → settle, for every scene."""

from __future__ import annotations

import asyncio
import random
import time

import orjson

from common.failures import LeaseLost
from common.logs import logger
from common.metrics import Metrics
from common.process import until
from common.queue.committer import Committer, Decision
from common.queue.connection import Server
from common.queue.heartbeat import Heartbeat
from common.queue.scene_queue import Lease, SceneQueue, wait_any
from common.serve import Health
from common.settings import Settings
from common.store import Damaged, Store, StoreError
from reviewer.review import Reviewed, review

log = logger("reviewer")

_BATCH = 16
_GC = 600.0
"""Seconds between two looks for consumers that are long gone."""


class Reviewer:
    """Reviews committed attempts until it is told to drain."""

    def __init__(
        self,
        settings: Settings,
        server: Server,
        store: Store,
        scenes: list[str],
        metrics: Metrics,
        health: Health,
        *,
        consumer: str,
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._health = health
        self._consumer = consumer
        self._lines = []
        for scene in scenes:
            queue = SceneQueue(
                server, scene, consumer=consumer, stage="review", ledger_ttl=settings.ledger_ttl
            )
            self._lines.append((queue, Committer(queue)))
        self._reclaim_at = self._gc_at = 0.0
        self._heartbeat = Heartbeat(server.url, lease=settings.lease, on_lost=lambda _: None)

    async def run(self, draining: asyncio.Event) -> None:
        self._heartbeat.start()
        try:
            while not draining.is_set():
                self._health.turn()
                self._heartbeat.pulse()
                if time.monotonic() >= self._gc_at:
                    self._gc_at = time.monotonic() + _GC
                    for queue, _ in self._lines:
                        await queue.gc()
                self._metrics.loop_success.labels("reviewer").set_to_current_time()
                reclaiming = time.monotonic() >= self._reclaim_at and self._heartbeat.steady
                if reclaiming:
                    spread = random.uniform(0.75, 1.25)
                    self._reclaim_at = time.monotonic() + self._settings.lease / 4 * spread
                taken = 0
                for queue, committer in self._lines:
                    leases = await self._take(queue, reclaiming)
                    taken += len(leases)
                    if leases:
                        await self._review_all(queue, committer, leases)
                    if draining.is_set():
                        break
                if taken == 0:
                    await until(draining, wait_any([queue for queue, _ in self._lines]))
        finally:
            self._health.draining = True
            self._heartbeat.stop()
            for _, committer in self._lines:
                await committer.close()

    async def _take(self, queue: SceneQueue, reclaiming: bool) -> list[Lease]:
        leases: list[Lease] = []
        if reclaiming:
            got = await queue.reclaim(
                _BATCH, lease=self._settings.lease, max_deliveries=self._settings.max_deliveries,
                heard=self._heartbeat.heard,
            )  # fmt: skip
            leases = got.leases
            if got.buried:
                log.error("review.dead_lettered", scene=queue.scene, count=got.buried)
                self._metrics.dead_letters.labels(queue.scene, "poison").inc(got.buried)
        if len(leases) < _BATCH:
            leases += await queue.take(_BATCH - len(leases))
        return leases

    async def _review_all(
        self, queue: SceneQueue, committer: Committer, leases: list[Lease]
    ) -> None:
        """Review a batch; what the store refuses goes back, uncounted, and waits for the store."""
        for lease in leases:
            self._heartbeat.hold(queue, lease)
        results = await asyncio.gather(
            *(self._review(committer, lease) for lease in leases), return_exceptions=True
        )
        back = []
        for lease, result in zip(leases, results, strict=True):
            self._heartbeat.drop(lease)
            match result:
                case None:
                    pass
                case LeaseLost():
                    log.warning("lease.lost", task_id=lease.task_id)
                case StoreError() if not isinstance(result, Damaged):
                    log.error("store.unavailable", task_id=lease.task_id, error=str(result))
                    back.append(lease)
                case Exception():
                    # Left to lapse: it is tried again, and is a dead letter after max_deliveries.
                    log.error("review.failed", task_id=lease.task_id, exc_info=result)
                case _:
                    raise result
        if back:
            await queue.release(back)
            await asyncio.sleep(2.0)

    async def _review(self, committer: Committer, lease: Lease) -> None:
        event = orjson.loads(lease.payload)
        trajectory = await asyncio.to_thread(
            self._store.read_attempt,
            lease.task_id,
            event["attempt_id"],
            sha256=event.get("sha256"),
        )
        outcome = review(trajectory, reviewer=self._consumer, now=time.time())
        # The file first: once settled, nobody would write it again.
        await asyncio.to_thread(self._store.write_review, outcome.review)
        # The event is proof enough of who won the entry; once settled, nobody would sweep either.
        swept = await asyncio.to_thread(
            self._store.sweep, lease.task_id, event["attempt_id"], scene=lease.scene
        )
        if swept:
            self._metrics.swept.labels(lease.scene).inc(len(swept))
            log.info("store.swept", task_id=lease.task_id, attempts=swept)
        await committer.commit(lease, _decision(outcome))
        self._count(lease.scene, outcome)

    def _count(self, scene: str, outcome: Reviewed) -> None:
        said = outcome.review
        level = "green" if said.changes else "none"
        self._metrics.reviews.labels(scene, said.decision, level).inc()
        if said.score is not None:
            self._metrics.score.labels(scene).observe(said.score / 100)
        if said.decision == "iterate":
            self._metrics.iterations.labels(scene, level).inc()
        if said.decision == "accepted":
            self._metrics.accepted.labels(scene).inc()
        log.info(
            "review.finished", scene=scene, task_id=said.task_id, attempt_id=said.attempt_id,
            decision=said.decision, score=said.score,
        )  # fmt: skip


def _decision(outcome: Reviewed) -> Decision:
    said = outcome.review
    record = {
        "attempt_id": said.attempt_id, "decision": said.decision, "score": said.score,
        "reason": said.reason, "by": said.reviewer, "at": said.reviewed_at,
        "changes": [c.model_dump(mode="json", by_alias=True) for c in said.changes],
    }  # fmt: skip
    return Decision(
        verdict="unverified" if said.passed is None else "passed" if said.passed else "failed",
        decision=said.decision,
        score=said.score,
        record=orjson.dumps(record),
        next=outcome.next,
    )
