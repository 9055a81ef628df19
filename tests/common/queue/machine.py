"""All that may happen to a scene: the events, each checked against what the model says of it."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from common.approvals import Wait
from common.failures import LeaseLost
from common.queue.committer import Cancelled, Committer, Dead, Decision, Done, Outcome, Retry
from common.queue.keys import REVIEWERS, WORKERS
from common.queue.scene_queue import Lease, NewTask
from common.task import Assignment
from tests.common.queue.model import Unit
from tests.common.queue.time_and_people import TimeAndPeople
from tests.common.queue.watched_scene import CONSUMERS, IDS, picks
from tests.common.waiting import yellow
from tests.helpers import task

MAX_RETRIES = 2
MAX_WAITS = 100
MAX_DELIVERIES = 3
LEASE = 600.0
"""Seconds; far longer than a test. Leases run out when the test says so."""
PRIORITIES = (9, 5, 1)

OUTCOMES: dict[str, Outcome] = {
    "done": Done(b"{}"),
    "retry": Retry(3600.0, "down"),
    "wait": Retry(3600.0, "429", counted=False),
    "dead": Dead("invalid_task", "no"),
    "cancelled": Cancelled(),
}

consumers = st.sampled_from(CONSUMERS)
stages = st.sampled_from(("work", "review"))
_STALE = 24
"""Picks from here on mean any lease there ever was, not one in force."""


class Scene(TimeAndPeople):
    """What the dispatcher, workers and reviewers do, in any order."""

    @initialize()
    def begin(self) -> None:
        self.connect()
        self._publish([("t0", 5, 2), ("t1", 9, 1), ("t2", 1, 3)], self.model.position, 1 << 40)

    # -- publish -----------------------------------------------------------------------------

    @rule(
        tasks=st.lists(
            st.tuples(st.sampled_from(IDS), st.sampled_from(PRIORITIES), st.integers(1, 3)),
            min_size=1, max_size=4,
        ),
        moved=st.integers(0, 4),
        backlog=st.sampled_from((1 << 40, 1 << 40, 3)),
    )  # fmt: skip
    def publish(self, tasks: list[tuple[str, int, int]], moved: int, backlog: int) -> None:
        self._publish(tasks, self.model.position if moved else "elsewhere", backlog)

    def _publish(self, tasks: list[tuple[str, int, int]], expected: str, backlog: int) -> None:
        lines = [task(i, priority=p, samples=k) for i, p, k in tasks]
        batch = [[Assignment(task=t, sample=n) for n in range(t.samples)] for t in lines]
        new_tasks = [NewTask.of(samples) for samples in batch]
        new = f"{int(self.model.position or 0) + 1}"
        reply = self.run(
            self.queue.publish(new_tasks, file="f", expected=expected, new=new, max_backlog=backlog)
        )
        if expected != self.model.position:
            assert (reply.outcome, reply.position) == ("moved", self.model.position)
            return
        size, waiting = sum(len(samples) for samples in batch), self.model.backlog()
        if waiting and waiting + size > backlog:
            assert reply.outcome == "full"
            return
        published, again = self.model.publish(batch)
        assert (reply.outcome, reply.published) == ("published", published)
        assert list(reply.duplicates) == again
        self.model.position = new

    # -- take, renew, give up ----------------------------------------------------------------

    @precondition(lambda self: not self.model.paused)
    @rule(name=consumers, count=st.integers(1, 6))
    def take_work(self, name: str, count: int) -> None:
        self._take(name, "work", count)

    @precondition(lambda self: self.model.at("review", "queued", "released"))
    @rule(name=consumers, count=st.integers(1, 6))
    def take_reviews(self, name: str, count: int) -> None:
        self._take(name, "review", count)

    @precondition(lambda self: self.model.paused)
    @rule(name=consumers)
    def take_while_paused(self, name: str) -> None:
        self._take(name, "work", 3)

    def _take(self, name: str, stage: str, count: int) -> None:
        leases = self.run(self.queues[stage, name].take(count))
        if stage == "work" and self.model.paused:
            assert not leases
            return
        free = self.model.at(stage, "queued", "released")
        doomed = [u for u in free if u.row.cancelled and stage == "work"]
        if doomed:
            for unit in doomed:
                if not self.run(self._waits(unit)):
                    self.model.cancelled(unit)
            assert len(leases) <= min(count, len(free) - len(doomed))
        else:
            assert len(leases) == min(count, len(free))
        lanes = [lease.stream for lease in leases]
        assert sum(a != b for a, b in pairwise(lanes)) < 3, "one lane after the other"
        for lease in leases:
            self.model.taken(self._unit(lease, free), lease)
            self.given[stage].append(lease)

    async def _waits(self, unit: Unit) -> bool:
        """Is an entry of this unit still in its lane?"""
        rows = await self.server.client.xrange(self.keys.lanes[unit.lane - 1])
        name = (unit.row.task_id.encode(), unit.name.encode())
        return any((fields[b"id"], fields[b"u"]) == name for _, fields in rows)

    def _unit(self, lease: Lease, among: list[Unit]) -> Unit:
        found = [u for u in among if (u.row.task_id, u.name) == (lease.task_id, lease.unit)]
        assert len(found) == 1, (lease, found)
        [unit] = found
        if lease.stage == "work":
            assert (lease.stream, lease.payload) == (unit.lane, unit.payload)
        return unit

    @precondition(lambda self: self.model.at("work", "leased") or self.model.at("review", "leased"))
    @rule(pick=picks)
    def an_owner_falls_silent(self, pick: int) -> None:
        leased = self.model.at("work", "leased") + self.model.at("review", "leased")
        self._silence(leased[pick % len(leased)])

    @precondition(lambda self: self.model.at("work", "leased") or self.model.at("review", "leased"))
    @rule(name=consumers, stage=stages)
    def a_consumer_dies(self, name: str, stage: str) -> None:
        for unit in self.model.at(stage, "leased"):
            if unit.lease is not None and unit.lease.consumer == name:
                self._silence(unit)

    def _silence(self, unit: Unit) -> None:
        """Let more than a lease pass for the owner of a unit."""
        lease = unit.lease
        assert lease is not None
        stream, group = self._place(lease)
        self.run(
            self.server.client.xclaim(
                stream, group, lease.consumer, 0, [lease.entry], idle=int(LEASE * 2000),
                retrycount=lease.deliveries, justid=True,
            )
        )  # fmt: skip
        unit.silent = True

    def _place(self, lease: Lease) -> tuple[str, str]:
        if lease.stage == "review":
            return self.keys.events, REVIEWERS
        return self.keys.lanes[lease.stream - 1], WORKERS

    @precondition(lambda self: self.given["work"] or self.given["review"])
    @rule(stage=stages, which=st.lists(picks, min_size=1, max_size=4, unique=True))
    def renew(self, stage: str, which: list[int]) -> None:
        leases = self._pick(stage, which)
        for name in {lease.consumer for lease in leases}:
            queue = self.queues[stage, name]
            mine = [lease for lease in leases if lease.consumer == name]
            argv: list[Any] = [queue.group, name]
            for lease in mine:
                argv += [lease.stream, lease.entry, lease.deliveries, lease.task_id]
            keys = (queue.keys.prefix, *queue.streams)
            alive = self.run(self.server.fcall("renew", keys, argv))
            for lease, answer in zip(mine, alive, strict=True):
                unit = self.model.holder(lease)
                stop = unit is not None and stage == "work" and unit.row.cancelled
                assert answer == (0 if unit is None else 2 if stop else 1)
                if unit is not None:
                    unit.silent = False

    def _pick(self, stage: str, which: list[int]) -> list[Lease]:
        """Leases, each once: three of four from those in force, the others from all there were."""
        given = self.given[stage]
        if not given:
            return []
        living = [u.lease for u in self.model.at(stage, "leased") if u.lease is not None]
        chosen = []
        for n in which:
            among = living if living and n < _STALE else given
            chosen.append(among[n * 7 % len(among)])
        return list(dict.fromkeys(chosen))

    @rule(
        name=consumers,
        stage=stages,
        count=st.integers(0, 4),
        says=st.sampled_from(("all", "all", "nothing", "unsure")),
    )
    def reclaim(self, name: str, stage: str, count: int, says: str) -> None:
        self._reclaim(name, stage, count, says)

    def _reclaim(self, name: str, stage: str, count: int, says: str) -> None:
        """The caller says what it holds, or let it lapse, or never got the reply that gave it."""
        queue = self.queues[stage, name]
        before = self.model.at(stage, "leased", "released")
        own = [u for u in before if u.lease is not None and u.lease.consumer == name]
        silent = [u for u in before if u.silent and not (says == "all" and u in own)]
        doomed = [u for u in silent if stage == "work" and u.row.cancelled]
        silent = [u for u in silent if u not in doomed and u.where == "leased"]
        again = own if says == "unsure" else []
        poison = [u for u in silent if u not in again and u.deliveries >= MAX_DELIVERIES]
        queue._unsure = says == "unsure"
        holding = [u.lease for u in own if u.lease is not None] if says == "all" else []
        got = self.run(
            queue.reclaim(count, lease=LEASE, max_deliveries=MAX_DELIVERIES, holding=holding)
        )
        assert got.buried == len(poison)
        for unit in doomed:
            self.model.cancelled(unit)
        for unit in poison:
            self.model.bury(unit)
        most = 0 if stage == "work" and self.model.paused else count
        assert len(got.leases) == min(most, len(silent) - len(poison))
        for lease in got.leases:
            unit = self._unit(lease, silent)
            self.model.reclaimed(unit, lease, again=unit in again)
            self.given[stage].append(lease)

    @precondition(lambda self: self.model.at("work", "leased") or self.model.at("review", "leased"))
    @rule(stage=stages, heir=consumers, come_back=st.booleans(), pick=picks)
    def all_is_taken_over(self, stage: str, heir: str, come_back: bool, pick: int) -> None:
        """Everybody falls silent, one takes it all; then perhaps a former owner comes back."""
        leased = self.model.at(stage, "leased")
        if not leased:
            return
        old = leased[pick % len(leased)].lease
        assert old is not None
        for unit in leased:
            self._silence(unit)
        self._reclaim(heir, stage, 4, "nothing")
        if come_back and stage == "work":
            self._commit(stage, [(old, OUTCOMES["done"])])

    @precondition(lambda self: self.given["work"] or self.given["review"])
    @rule(stage=stages, which=st.lists(picks, min_size=1, max_size=3, unique=True))
    def release(self, stage: str, which: list[int]) -> None:
        leases = self._pick(stage, which)
        for name in sorted({lease.consumer for lease in leases}):
            mine = [lease for lease in leases if lease.consumer == name]
            expected = sum(self.model.released(lease) for lease in mine)
            assert self.run(self.queues[stage, name].release(mine)) == expected

    # -- commit ------------------------------------------------------------------------------

    @precondition(lambda self: self.model.at("work", "leased"))
    @rule(
        which=st.lists(
            st.tuples(
                picks,
                st.sampled_from(("done",) * 6 + ("retry", "retry", "wait", "dead", "cancelled")),
            ),
            min_size=1, max_size=12, unique_by=lambda row: row[0],
        )
    )  # fmt: skip
    def commit(self, which: list[tuple[int, str]]) -> None:
        """Several in one call; living, stale and repeated ones mixed."""
        chosen = [(self._pick("work", [n])[0], OUTCOMES[verb]) for n, verb in which]
        self._commit("work", chosen)

    @precondition(lambda self: self.model.at("review", "leased"))
    @rule(
        which=st.lists(
            st.tuples(
                picks,
                st.sampled_from(
                    ("accepted", "rejected", "human", "iterate", "iterate", "waiting", "waiting")
                ),
                st.sampled_from(("passed", "failed", "unverified")),
                st.sampled_from((None, 10, 90)),
            ),
            min_size=1, max_size=4, unique_by=lambda row: row[0],
        )
    )  # fmt: skip
    def settle(self, which: list[tuple[int, str, str, int | None]]) -> None:
        chosen: list[tuple[Lease, Outcome]] = []
        for n, decision, verdict, score in which:
            [lease] = self._pick("review", [n])
            following = self._next(lease) if decision == "iterate" else None
            wait = self._asked(lease) if decision == "waiting" else None
            chosen.append((lease, Decision(verdict, decision, score, b"{}", following, wait)))  # type: ignore[arg-type]
        self._commit("review", chosen)

    @precondition(lambda self: self.model.at("work", "queued") and not self.model.paused)
    @rule(name=consumers, verb=st.sampled_from(("done", "done", "dead", "dead", "retry")))
    def a_batch_is_worked_off(self, name: str, verb: str) -> None:
        """Take and commit in one step: the way to ends, dead letters and second lives."""
        self._take(name, "work", 8)
        # With them all that its former lives still believe to hold: big batches, checked at once.
        believed = [lease for lease in self.given["work"] if lease.consumer == name]
        self._commit("work", [(lease, OUTCOMES[verb]) for lease in believed[-16:]])

    @precondition(lambda self: self.model.at("review", "queued"))
    @rule(
        name=consumers,
        decision=st.sampled_from(
            ("accepted", "rejected", "human", "waiting", "waiting", "waiting")
        ),
    )
    def a_batch_is_reviewed(self, name: str, decision: Any) -> None:
        before = len(self.given["review"])
        self._take(name, "review", 6)
        chosen: list[tuple[Lease, Outcome]] = []
        for lease in self.given["review"][before:]:
            wait = self._asked(lease) if decision == "waiting" else None
            chosen.append((lease, Decision("passed", decision, 50, b"{}", wait=wait)))
        self._commit("review", chosen)

    def _next(self, lease: Lease) -> Assignment:
        revision, _, sample = lease.unit.partition("-s")
        return Assignment(
            task=task(lease.task_id, priority=PRIORITIES[len(self.given["review"]) % 3]),
            revision=int(revision[1:]) + 1, sample=int(sample),
        )  # fmt: skip

    def _asked(self, lease: Lease) -> Wait:
        following = self._next(lease)
        before = following.model_copy(update={"revision": following.revision - 1})
        return yellow(before, lease.attempt_id)

    def _commit(self, stage: str, chosen: list[tuple[Lease, Outcome]]) -> None:
        async def all_at_once(name: str) -> None:
            committer = Committer(self.queues[stage, name], max_retries=MAX_RETRIES)
            mine = [(lease, outcome) for lease, outcome in chosen if lease.consumer == name]
            answers = await asyncio.gather(
                *(committer.commit(lease, outcome) for lease, outcome in mine),
                return_exceptions=True,
            )
            await committer.close()
            for (lease, outcome), answer in zip(mine, answers, strict=True):
                self._answered(lease, outcome, answer)

        for name in CONSUMERS:
            self.run(all_at_once(name))

    def _answered(self, lease: Lease, outcome: Outcome, answer: BaseException | None) -> None:
        unit, kind = self.model.fence(lease)
        assert kind == (answer is None), (lease, outcome, answer)
        if not kind:
            assert isinstance(answer, LeaseLost)
        if unit is not None:
            self._follow(unit, outcome)

    def _follow(self, unit: Unit, outcome: Outcome) -> None:
        match outcome:
            case Done():
                self.model.done(unit)
            case Retry(_, _, True):
                self.model.retry(unit, "retry", MAX_RETRIES)
            case Retry():
                self.model.retry(unit, "wait", MAX_WAITS)
            case Dead():
                self.model.bury(unit)
            case Cancelled():
                self.model.cancelled(unit)
            case Decision(verdict, decision, score, _, following, wait):
                self.model.settle(unit, verdict, decision, score)
                if following is not None:
                    self.model.iterate(unit, following)
                if wait is not None:
                    self.model.wait(unit, wait.approvals[0].approval_id)
