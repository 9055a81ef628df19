"""The reviewer: take an event → read the attempt → review → write → settle, for every scene."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import orjson

from common.failures import LeaseLost
from common.logs import logger
from common.metrics import Metrics
from common.process import ended, until
from common.queue.committer import Committer, Decision
from common.queue.connection import Server
from common.queue.heartbeat import Heartbeat
from common.queue.scene_queue import Lease, SceneQueue, wait_any
from common.quota.budgets import BudgetWatch
from common.serve import Health
from common.settings import Settings
from common.store import Damaged, Store, StoreError
from common.trajectory import Trajectory
from reviewer.counsel import Counsel
from reviewer.policy import Policy
from reviewer.review import Reviewed, Rules, Seen, review
from reviewer.rubric import rubric_for
from reviewer.tries import Tries
from reviewer.upkeep import Upkeep

log = logger("reviewer")

_AT_ONCE = 128
"""Reviews under way. Most take milliseconds; those that ask a model leave room for others."""
_ROOM = _AT_ONCE // 4
"""Places that must be free again before more is taken: one call for many costs as one for one."""
_GC = 600.0
"""Seconds between two looks for consumers that are long gone."""
_STORE_REST = 2.0


@dataclass(frozen=True)
class _Line:
    """One scene's events, and what its attempts are reviewed by."""

    queue: SceneQueue
    committer: Committer
    rules: Rules


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
        counsel: Counsel | None = None,
        watch: BudgetWatch | None = None,
        models: Sequence[str] = (),
    ) -> None:
        """``watch``: knows what may still be spent. ``models``: those a task may be given."""
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._health = health
        self._consumer = consumer
        self._counsel = counsel or Counsel()
        self._watch = watch
        self._tries = Tries(store)
        policy = Policy.load(people=settings.approval_people, models=models)
        self._lines = []
        for scene in scenes:
            queue = SceneQueue(
                server, scene, consumer=consumer, stage="review", ledger_ttl=settings.ledger_ttl
            )
            rules = Rules(
                rubric_for(scene, settings.rubrics), policy,
                settings.ask_people, settings.approval_ttl,
            )  # fmt: skip
            self._lines.append(_Line(queue, Committer(queue), rules))
        self._upkeep = Upkeep(settings, server, store, scenes, metrics)
        self._reclaim_at = self._gc_at = self._rest_until = 0.0
        self._running: dict[asyncio.Task[None], Lease] = {}
        self._room = asyncio.Event()
        self._heartbeat = Heartbeat(server.url, lease=settings.lease, on_lost=lambda _: None)

    async def run(self, draining: asyncio.Event) -> None:
        self._heartbeat.start()
        upkeep = asyncio.create_task(self._upkeep.run(), name="upkeep")
        try:
            while not draining.is_set():
                self._health.turn()
                self._heartbeat.pulse()
                if time.monotonic() >= self._gc_at:
                    self._gc_at = time.monotonic() + _GC
                    for line in self._lines:
                        await line.queue.gc()
                self._metrics.loop_success.labels("reviewer").set_to_current_time()
                if upkeep.done():
                    upkeep.result()
                taken = await self._fill(draining)
                if taken == 0:
                    await self._idle(draining)
        finally:
            self._health.draining = True
            await self._let_end()
            await ended(upkeep)
            self._heartbeat.stop()
            for line in self._lines:
                await line.committer.close()
            await self._upkeep.last()

    async def _fill(self, draining: asyncio.Event) -> int:
        """Take as many attempts as there is room for, fairly by scene; returns how many."""
        if time.monotonic() < self._rest_until:
            return 0
        reclaiming = time.monotonic() >= self._reclaim_at and self._heartbeat.steady
        if reclaiming:
            spread = random.uniform(0.75, 1.25)
            self._reclaim_at = time.monotonic() + self._settings.lease / 4 * spread
        taken = 0
        random.shuffle(self._lines)  # a scene with much to review must not starve the others
        for line in self._lines:
            room = _AT_ONCE - len(self._running)
            if room <= 0 or draining.is_set():
                break
            leases = await self._take(line.queue, room, reclaiming)
            taken += len(leases)
            for lease in leases:
                self._heartbeat.hold(line.queue, lease)
                task = asyncio.create_task(self._handle(line, lease), name=lease.attempt_id)
                self._running[task] = lease
                task.add_done_callback(self._ended)
        return taken

    async def _idle(self, draining: asyncio.Event) -> None:
        """Wait for room, for an event, or for the end of a rest."""
        if (rest := self._rest_until - time.monotonic()) > 0:
            await until(draining, asyncio.sleep(rest))
        elif len(self._running) > _AT_ONCE - _ROOM:
            self._room.clear()
            await until(draining, self._room.wait(), timeout=self._settings.lease / 4)
        else:
            await until(draining, wait_any([line.queue for line in self._lines]))

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task)
        if len(self._running) <= _AT_ONCE - _ROOM:
            self._room.set()

    async def _let_end(self) -> None:
        """Let reviews under way end in their time; what waits for a judge is handed back."""
        if self._running:
            await asyncio.wait(self._running, timeout=self._settings.drain_grace / 2)
        await ended(*self._running)

    async def _take(self, queue: SceneQueue, room: int, reclaiming: bool) -> list[Lease]:
        leases: list[Lease] = []
        if reclaiming:
            got = await queue.reclaim(
                room, lease=self._settings.lease, max_deliveries=self._settings.max_deliveries,
                holding=list(self._running.values()), heard=self._heartbeat.heard,
            )  # fmt: skip
            leases = got.leases
            if got.buried:
                log.error("review.dead_lettered", scene=queue.scene, count=got.buried)
                self._metrics.dead_letters.labels(queue.scene, "poison").inc(got.buried)
        if len(leases) < room:
            leases += await queue.take(room - len(leases))
        return leases

    async def _handle(self, line: _Line, lease: Lease) -> None:
        """Review one attempt; what the store refuses goes back, uncounted."""
        try:
            await self._review(line, lease)
        except LeaseLost:
            log.warning("lease.lost", task_id=lease.task_id)
        except Damaged as error:
            # Left to lapse: it is tried again, and is a dead letter after max_deliveries.
            log.error("review.failed", task_id=lease.task_id, error=str(error))
        except StoreError as error:
            log.error("store.unavailable", task_id=lease.task_id, error=str(error))
            self._rest_until = time.monotonic() + _STORE_REST
            await line.queue.release([lease])
        except asyncio.CancelledError:
            await line.queue.release([lease])
            raise
        except Exception:  # the boundary of one review: a bug met by one attempt costs no other
            log.exception("review.failed", task_id=lease.task_id)
        finally:
            self._heartbeat.drop(lease)

    async def _review(self, line: _Line, lease: Lease) -> None:
        # In threads: files are slow, and a long attempt takes longer than a heartbeat may wait.
        if self._counsel.silent:
            outcome, swept = await asyncio.to_thread(self._review_alone, line.rules, lease)
        else:
            outcome, swept = await self._review_with_counsel(line.rules, lease)
        if swept:
            self._metrics.swept.labels(lease.scene).inc(len(swept))
            log.info("store.swept", task_id=lease.task_id, attempts=swept)
        await line.committer.commit(lease, _decision(outcome))
        self._upkeep.stir()
        self._count(lease.scene, outcome)

    def _review_alone(self, rules: Rules, lease: Lease) -> tuple[Reviewed, list[str]]:
        """Review by rules, and write it down; returns also the attempts that were swept."""
        trajectory, seen = self._look(lease)
        return self._keep(lease, self._weigh(trajectory, rules, seen, lease))

    async def _review_with_counsel(self, rules: Rules, lease: Lease) -> tuple[Reviewed, list[str]]:
        """Review as `_review_alone`, with what judges and proposers say. Waits for them."""
        trajectory, seen = await asyncio.to_thread(self._look, lease)
        report = await self._counsel.report(trajectory, rules.rubric)
        if report is not None:
            trusted = self._counsel.trusts(report, rules.rubric)
            seen = replace(seen, report=report, trusted=trusted)
        found = await asyncio.to_thread(self._weigh, trajectory, rules, seen, lease)
        if found.again and (suggestions := await self._counsel.suggestions(trajectory)):
            seen = replace(seen, suggestions=suggestions)
            found = await asyncio.to_thread(self._weigh, trajectory, rules, seen, lease)
        return await asyncio.to_thread(self._keep, lease, found)

    def _look(self, lease: Lease) -> tuple[Trajectory, Seen]:
        """Read the attempt an event is about, and what there is around it."""
        event = orjson.loads(lease.payload)
        trajectory = self._store.read_attempt(
            lease.task_id, event["attempt_id"], sha256=event.get("sha256")
        )
        group, siblings = self._tries.around(trajectory)
        return trajectory, Seen(group, siblings, spent=self._spent(trajectory))

    def _weigh(self, trajectory: Trajectory, rules: Rules, seen: Seen, lease: Lease) -> Reviewed:
        return review(
            trajectory, rules, seen,
            reviewer=self._consumer, now=time.time(), delivery=lease.deliveries,
        )  # fmt: skip

    def _keep(self, lease: Lease, outcome: Reviewed) -> tuple[Reviewed, list[str]]:
        said = outcome.review
        # The file first: once settled, nobody would write it again.
        self._store.write_review(said)
        # The event is proof enough of who won the entry; once settled, nobody would sweep either.
        return outcome, self._store.sweep(said.task_id, said.attempt_id, scene=lease.scene)

    def _spent(self, trajectory: Trajectory) -> str | None:
        if self._watch is None:
            return None
        free = trajectory.usage.cost_usd == 0
        exceeded = self._watch.objection(trajectory.assignment.task.scene, free=free)
        return str(exceeded) if exceeded is not None else None

    def _count(self, scene: str, outcome: Reviewed) -> None:
        said = outcome.review
        levels = {p.level for p in said.proposals if not p.refused}
        level = "none"
        if outcome.wait is not None:
            level = "red" if "red" in levels else "yellow"
        elif said.changes:
            level = "green"
        tries = "first" if said.first_try else "retried"
        self._metrics.reviews.labels(scene, said.decision, level, tries).inc()
        if said.score is not None:
            self._metrics.score.labels(scene, tries).observe(said.score / 100)
        if said.decision == "iterate":
            self._metrics.iterations.labels(scene, level).inc()
        if said.decision == "accepted":
            self._metrics.accepted.labels(scene, tries).inc()
        for approval in outcome.wait.approvals if outcome.wait else ():
            self._metrics.approvals_asked.labels(scene, approval.proposal.level).inc()
        log.info(
            "review.finished", scene=scene, task_id=said.task_id, attempt_id=said.attempt_id,
            decision=said.decision, score=said.score,
        )  # fmt: skip


def _decision(outcome: Reviewed) -> Decision:
    said = outcome.review
    record = {
        "attempt_id": said.attempt_id, "decision": said.decision, "score": said.score,
        "reason": said.reason, "by": said.reviewer, "at": said.reviewed_at,
        "rubric": said.rubric, "accepted_by": said.accepted_by, "approvals": said.approvals,
        "changes": [c.model_dump(mode="json", by_alias=True) for c in said.changes],
    }  # fmt: skip
    return Decision(
        verdict="unverified" if said.passed is None else "passed" if said.passed else "failed",
        decision=said.decision,
        score=said.score,
        record=orjson.dumps(record),
        next=outcome.next,
        wait=outcome.wait,
    )
