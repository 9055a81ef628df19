"""A worker: take → run → commit, for one or more scenes, many episodes at once."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from typing import Any, Literal

from pydantic import ValidationError

from common import __version__
from common.failures import ConfigurationError, Failure, FailureKind, FleetError, LeaseLost
from common.logs import logger
from common.metrics import Metrics
from common.model import explain
from common.process import ended, until
from common.queue.committer import Cancelled, Committer, Dead, Done, Outcome, Retry
from common.queue.connection import BLOCK_MS, Server, ServerGone
from common.queue.heartbeat import Heartbeat
from common.queue.scene_queue import Lease, SceneQueue, wait_any
from common.serve import Health
from common.settings import Settings
from common.store import Store, StoreError
from common.task import Assignment
from common.trajectory import Provenance
from workers.environment import Scene
from workers.episode import Episode, EpisodeLimits
from workers.journal import Journal
from workers.outcome import finished, names_of, outcome_of, refused, retry_of, sweep
from workers.policies.base import PolicyFactory
from workers.policies.journaled import Journaled
from workers.policies.model import ModelPolicy
from workers.slots import Line, Running

log = logger("worker")

_RECLAIM = 0.15
"""Leases between two looks for silent owners: with jitter and the owner's last renewal, its work
runs again within 1.2 leases of its death."""
_GC = 600
"""Seconds between two looks for consumers that are long gone; the first is at the start."""
_HOLD_CHECK = 3.0
"""Seconds between looks whether a store that could not be written can be again."""


class Worker:
    """Runs until it is told to drain; gives back what it cannot finish."""

    def __init__(
        self,
        settings: Settings,
        server: Server,
        store: Store,
        scenes: list[Scene],
        policies: PolicyFactory,
        metrics: Metrics,
        health: Health,
        *,
        consumer: str,
    ) -> None:
        self._settings = settings
        self._store = store
        self._policies = policies
        self._metrics = metrics
        self._health = health
        self._consumer = consumer
        self._lines = []
        for scene in scenes:
            queue = SceneQueue(
                server, scene.name, consumer=consumer, ledger_ttl=settings.ledger_ttl
            )
            committer = Committer(
                queue, max_retries=settings.max_retries, max_waits=settings.max_waits
            )
            self._lines.append(Line(scene, queue, committer))
            metrics.slots.labels(scene.name).set(settings.concurrency)
        self._running: dict[Lease, Running] = {}
        self._turn = 0
        self._freed = asyncio.Event()
        self._holding: str | None = None
        self._broken: ConfigurationError | None = None
        self._draining = asyncio.Event()
        self._heartbeat = Heartbeat(
            server.url, lease=settings.lease, on_lost=partial(self._stop, "lost"),
            on_cancelled=partial(self._stop, "cancelled"), card=self._card,
        )  # fmt: skip
        for line in self._lines:
            self._heartbeat.announce(line.queue)
        self._provenance = Provenance(
            fleet_version=__version__,
            commit=settings.commit,
            worker=consumer,
            host=settings.host,
        )

    async def run(self, draining: asyncio.Event) -> None:
        """Work until ``draining`` is set, then drain. Raises `ConfigurationError`."""
        self._draining = draining
        self._heartbeat.start()
        try:
            async with asyncio.TaskGroup() as group:
                upkeep = group.create_task(self._upkeep())
                try:
                    await self._take_until_draining(group)
                    await self._drain()
                finally:
                    await ended(upkeep)
        finally:
            self._heartbeat.stop()
        if self._broken is not None:
            raise self._broken

    # -- take --------------------------------------------------------------------------------

    async def _take_until_draining(self, group: asyncio.TaskGroup) -> None:
        while not self._draining.is_set() and self._broken is None:
            self._health.turn()
            self._heartbeat.pulse()
            free = self._settings.concurrency - len(self._running)
            if self._holding is not None or free <= 0:
                await self._until_freed()
            elif await self._fill(group, free) == 0:
                await self._until_work()

    async def _fill(self, group: asyncio.TaskGroup, free: int) -> int:
        """Take work for free slots; returns how much there was.

        Every scene may have its share of all slots first, the neediest before the others; what
        they leave goes to whoever has more.
        """
        self._turn += 1
        share = max(1, self._settings.concurrency // len(self._lines))
        taken, hungry = 0, sorted(self._lines, key=lambda line: (line.running, line.served))
        for limit in (share, self._settings.concurrency):
            fed, hungry = hungry, []
            for line in fed:
                want = min(free - taken, limit - line.running)
                if want <= 0:
                    hungry.append(line)
                    continue
                leases = await self._leases(line, want)
                for lease in leases:
                    self._start(group, line, lease)
                if leases:
                    line.served = self._turn
                taken += len(leases)
                if len(leases) == want:
                    hungry.append(line)
        return taken

    async def _leases(self, line: Line, want: int) -> list[Lease]:
        """New work, and now and then what silent consumers held."""
        leases: list[Lease] = []
        now = time.monotonic()
        if now >= line.reclaim_at and self._heartbeat.steady:
            lease = self._settings.lease
            line.reclaim_at = now + lease * _RECLAIM * random.uniform(0.75, 1.25)
            await line.queue.promote()
            got = await line.queue.reclaim(
                want,
                lease=lease,
                max_deliveries=self._settings.max_deliveries,
                holding=[held for held in self._running if held.scene == line.scene.name],
                heard=self._heartbeat.heard,
            )
            leases = got.leases
            if leases:
                self._metrics.claimed.labels(line.scene.name).inc(len(leases))
                log.warning("entry.reclaimed", scene=line.scene.name, count=len(leases))
            if got.buried:
                self._metrics.dead_letters.labels(line.scene.name, "poison").inc(got.buried)
                log.error("task.dead_lettered", scene=line.scene.name, reason="poison",
                          count=got.buried)  # fmt: skip
        if len(leases) < want:
            leases += await line.queue.take(want - len(leases))
        return leases

    def _start(self, group: asyncio.TaskGroup, line: Line, lease: Lease) -> None:
        queued_ms = int(lease.entry.split("-")[0])
        waited = max(0.0, time.time() - queued_ms / 1000)
        self._metrics.queue_wait.labels(lease.scene).observe(waited)
        running = Running(lease, line.queue)
        self._running[lease] = running
        line.running += 1
        self._heartbeat.hold(line.queue, lease)
        running.task = group.create_task(self._attempt(line, running), name=lease.task_id)

    async def _until_work(self) -> None:
        """Wait for an entry in any stream, a free moment, or the order to drain."""
        due = min(line.reclaim_at for line in self._lines) - time.monotonic()
        # Overdue: the heartbeat is not steady yet, and nothing can be taken over before it is.
        block = BLOCK_MS if due <= 0 else max(10, min(BLOCK_MS, int(due * 1000)))
        await until(self._draining, wait_any([line.queue for line in self._lines], block))

    async def _until_freed(self) -> None:
        self._freed.clear()
        await until(self._draining, self._freed.wait(), timeout=1.0)

    # -- run ---------------------------------------------------------------------------------

    async def _attempt(self, line: Line, running: Running) -> None:
        lease = running.lease
        gauge = self._metrics.in_progress.labels(lease.scene)
        gauge.inc()
        outcome = "released"
        error_type = ""
        clock = time.monotonic()
        try:
            outcome, error_type = await self._run_and_commit(line, running)
        except LeaseLost:
            outcome = "lost"
            log.warning("lease.lost", task_id=lease.task_id, attempt_id=lease.attempt_id)
        except asyncio.CancelledError:
            # Lost to another consumer, or handed back while draining; both are recorded there.
            outcome = running.stopped or "released"
            if not running.stopped and not self._draining.is_set():
                raise
            if running.stopped == "cancelled":
                await self._commit_quietly(line, lease, Cancelled())
        except StoreError as error:
            outcome, error_type = await self._unwritten(line, running, error)
        except ConfigurationError as error:
            await self._give_up(error, running)
        except ServerGone:
            raise  # only while draining: the lease lapses, and others take over
        except Exception:
            # A bug of ours must not cost the other episodes, nor pass for the agent's failure.
            log.exception("attempt.bug", task_id=lease.task_id, attempt_id=lease.attempt_id)
            failure = Failure(kind=FailureKind.SYSTEM_ERROR, message="bug in the worker: see logs")
            outcome, error_type = "retried", failure.kind.value
            await self._commit_quietly(line, lease, self._retry(failure))
        finally:
            gauge.dec()
            self._metrics.attempts.labels(lease.scene, outcome, error_type).inc()
            self._metrics.attempt_seconds.labels(lease.scene, outcome).observe(
                time.monotonic() - clock
            )
            self._heartbeat.drop(lease)
            self._running.pop(lease, None)
            line.running -= 1
            self._freed.set()

    async def _run_and_commit(self, line: Line, running: Running) -> tuple[str, str]:
        """Return ``(outcome, error type)`` for the metrics."""
        lease = running.lease
        try:
            assignment = Assignment.model_validate_json(lease.payload)
        except ValidationError as error:
            why = "; ".join(f"{name}: {reason}" for name, reason in explain(error))
            return await self._refuse(line, running, Dead("invalid_task", why))
        log.info("attempt.started", **names_of(lease), deliveries=lease.deliveries)
        try:
            policy = self._policies(assignment, attempt_id=lease.attempt_id)
        except FleetError as error:
            return await self._refuse(line, running, Dead(error.kind.value, str(error)))
        if assignment.task.resumable and isinstance(policy, ModelPolicy):
            policy = Journaled(policy, Journal(line.queue, lease.task_id, lease.unit))
        episode = Episode(
            assignment,
            lease.attempt_id,
            line.scene,
            policy,
            self._store,
            self._provenance,
            EpisodeLimits(step=self._settings.step_timeout),
        )
        trajectory = await episode.run()
        digest = await asyncio.to_thread(self._store.write_attempt, trajectory)
        outcome, name = outcome_of(trajectory, digest, base=self._settings.retry_delay)
        running.committing = True
        try:
            await self._commit(line, lease, outcome)
        except LeaseLost:
            await asyncio.to_thread(
                self._store.discard_attempt, trajectory.task_id, trajectory.attempt_id
            )
            raise
        finished(self._metrics, lease, trajectory, name)
        return name, trajectory.failure.kind.value if trajectory.failure else ""

    async def _refuse(self, line: Line, running: Running, dead: Dead) -> tuple[str, str]:
        """Nothing was begun, and nothing can be: a dead letter at once."""
        running.committing = True
        await self._commit(line, running.lease, dead)
        refused(self._metrics, running.lease, dead)
        return "dead", dead.reason

    async def _commit(self, line: Line, lease: Lease, outcome: Outcome) -> None:
        """End the lease, and sweep what lost ones on its entry left. Raises `LeaseLost`."""
        await line.committer.commit(lease, outcome)
        if not isinstance(outcome, Done):  # those are swept with their reviews
            await sweep(self._store, self._metrics, lease)

    def _retry(self, failure: Failure) -> Retry:
        return retry_of(failure, base=self._settings.retry_delay)

    async def _commit_quietly(self, line: Line, lease: Lease, outcome: Outcome) -> None:
        try:
            await self._commit(line, lease, outcome)
        except LeaseLost:
            log.warning("lease.lost", task_id=lease.task_id, attempt_id=lease.attempt_id)
        except ServerGone:
            raise
        except Exception:
            # The lease lapses, and somebody else tries: no reason to end what runs beside it.
            log.exception("commit.failed", task_id=lease.task_id, attempt_id=lease.attempt_id)

    # -- when things go wrong ----------------------------------------------------------------

    def _stop(self, why: Literal["lost", "cancelled"], lease: Lease) -> None:
        """Another consumer has it, or a person asked for it: stop at once."""
        running = self._running.get(lease)
        if running is None or running.task is None or running.committing:
            return
        if not running.stopped:
            log.warning(f"lease.{why}", task_id=lease.task_id, attempt_id=lease.attempt_id)
            running.stopped = why
            running.task.cancel()

    async def _unwritten(self, line: Line, running: Running, error: StoreError) -> tuple[str, str]:
        """The result could not be kept: is it the store, or something about this task alone?"""
        try:
            await asyncio.to_thread(self._store.prove_writable)
        except StoreError:
            await self._hold(str(error), running)
            return "released", ""
        failure = Failure(kind=FailureKind.SYSTEM_ERROR, message=str(error)[:4000])
        await self._commit_quietly(line, running.lease, self._retry(failure))
        return "retried", failure.kind.value

    async def _hold(self, why: str, running: Running) -> None:
        """The store cannot be written: hand work back, take none until it can."""
        if self._holding is None:
            log.error("store.unwritable", error=why)
        self._holding = why
        await running.queue.release([running.lease])

    async def _give_up(self, error: ConfigurationError, running: Running) -> None:
        """Only a person can help: hand everything back and end."""
        self._broken = self._broken or error
        await running.queue.release([running.lease])
        self._freed.set()

    # -- upkeep ------------------------------------------------------------------------------

    async def _upkeep(self) -> None:
        """Once a second: show that the loop lives, promote delayed work, look at the store."""
        turn = 0
        while True:
            await asyncio.sleep(1.0)
            self._heartbeat.pulse()
            self._metrics.loop_success.labels("worker").set_to_current_time()
            for line in self._lines:
                await line.queue.promote()
                if turn % _GC == 0:
                    await line.queue.gc()
            turn += 1
            if turn % 60 == 0:
                for line in self._lines:
                    await line.scene.reap()
            if self._holding is not None and turn % _HOLD_CHECK == 0:
                try:
                    await asyncio.to_thread(self._store.prove_writable)
                except StoreError:
                    continue
                log.info("store.writable_again")
                self._holding = None
                self._freed.set()

    async def _drain(self) -> None:
        """Let what ends within the grace period end; hand the rest back, uncounted."""
        self._health.draining = True
        tasks = {r.task: r for r in self._running.values() if r.task is not None}
        grace = self._settings.drain_grace
        log.info("worker.draining", running=len(tasks), grace=grace)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=0 if self._broken else grace)
            by_queue: dict[int, list[Running]] = {}
            for task in late:
                by_queue.setdefault(id(tasks[task].queue), []).append(tasks[task])
                task.cancel()
            for group in by_queue.values():
                # At once, before the sandboxes are closed: others can start on it already.
                await group[0].queue.release([r.lease for r in group])
            if late:
                await asyncio.wait(late, timeout=20.0)
            log.info("worker.drained", finished=len(tasks) - len(late), handed_back=len(late))
        for line in self._lines:
            await line.committer.close()

    def _card(self) -> dict[str, Any]:
        return {
            "host": self._settings.host,
            "version": __version__,
            "scenes": [line.scene.name for line in self._lines],
            "slots": self._settings.concurrency,
            "running": sorted(lease.task_id for lease in list(self._running))[:100],
        }
