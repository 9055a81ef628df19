"""What a scene's queue should be, in plain Python: units, where each is, and the counters.

No Redis here and no time: the test says when a lease has run out or a delay is over.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from common.queue.scene_queue import Lease
from common.task import Assignment

Where = Literal["queued", "leased", "released", "delayed", "held", "waiting", "dead", "ended"]
_ENDS = ("accepted", "human", "rejected", "cancelled", "dead")
"""The state of an ended task is the first of these that one of its units ended with."""


@dataclass(eq=False)
class Unit:
    """One piece of work: on its way to a committed attempt, then to a decision about it."""

    row: Ledger
    name: str
    lane: int
    payload: bytes
    stage: Literal["work", "review"] = "work"
    where: Where = "queued"
    entry: str = ""
    lease: Lease | None = None
    """Who has it, while ``leased``."""
    silent: bool = False
    """Its owner has not renewed for longer than a lease."""
    deliveries: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    """By kind: `retry` counts towards the budget, `wait` only held up by a provider's limit."""
    committed: int = 0
    last: dict[str, str] = field(default_factory=dict)
    """By stage: the attempt id that committed last; repeating that call is answered kindly."""
    approval: str = ""
    """What people decide on, while ``waiting``."""
    outcome: str = "queued"
    """What the ledger says about it."""

    @property
    def stream(self) -> int:
        return self.lane if self.stage == "work" else 0

    @property
    def first(self) -> bool:
        return self.name.startswith("r1-")


@dataclass(eq=False)
class Ledger:
    """One life of a task id: from publishing until its row in the queue expires."""

    task_id: str
    units: dict[str, Unit] = field(default_factory=dict)
    open: int = 0
    first: int | None = None
    """Of several samples, first tries that have not ended; None once all have."""
    state: str = "open"
    ends: Counter[str] = field(default_factory=Counter)
    score: int = -1
    cancelled: bool = False
    """A person asked for its end, which has not come yet."""
    revived: bool = False
    """Made of dead letters whose row had expired."""


class Model:
    """The whole scene. Methods mirror `SceneQueue`, `Committer` and the passing of time."""

    def __init__(self) -> None:
        self.rows: dict[str, Ledger] = {}
        self.units: list[Unit] = []
        self.letters: dict[str, Unit] = {}
        """Dead letters: entry → unit."""
        self.counters: Counter[str] = Counter()
        self.position = ""
        self.paused = False

    # -- looking -----------------------------------------------------------------------------

    def at(self, stage: str, *wheres: Where) -> list[Unit]:
        return [u for u in self.units if u.stage == stage and u.where in wheres]

    def holder(self, lease: Lease) -> Unit | None:
        """The unit this lease still holds."""
        return next((u for u in self.units if u.lease is not None and same(u.lease, lease)), None)

    def backlog(self) -> int:
        return len(self.at("work", "queued"))

    # -- publish, take -----------------------------------------------------------------------

    def publish(self, batch: list[list[Assignment]]) -> tuple[int, list[int]]:
        """Returns how many tasks are new, and the indexes of the others."""
        again = []
        for index, samples in enumerate(batch):
            task = samples[0].task
            if task.task_id in self.rows:
                again.append(index)
                continue
            row = self.rows[task.task_id] = Ledger(task.task_id, open=len(samples))
            row.first = len(samples) if len(samples) > 1 else None
            self.counters["tasks"] += 1
            for assignment in samples:
                self._add(row, assignment)
        return len(batch) - len(again), again

    def _add(self, row: Ledger, assignment: Assignment) -> None:
        lane = ("hi", "mid", "lo").index(assignment.task.lane) + 1
        unit = Unit(row, assignment.unit, lane, assignment.encode())
        row.units[unit.name] = unit
        self.units.append(unit)
        self.counters["units"] += 1

    def taken(self, unit: Unit, lease: Lease) -> None:
        assert unit.where in ("queued", "released"), (unit, "was given out twice")
        assert lease.deliveries == unit.deliveries + 1
        self._lease(unit, lease)

    def _lease(self, unit: Unit, lease: Lease) -> None:
        unit.where, unit.lease, unit.silent = "leased", lease, False
        unit.entry, unit.deliveries = lease.entry, lease.deliveries

    def reclaimed(self, unit: Unit, lease: Lease, *, again: bool) -> None:
        """``again``: its owner never got the reply that gave it out, and gets it once more."""
        assert unit.silent, (unit, "was taken from a living owner")
        assert lease.deliveries == unit.deliveries + (not again)
        self.counters["reclaimed"] += not again
        self._lease(unit, lease)

    def released(self, lease: Lease) -> bool:
        unit = self.holder(lease)
        if unit is None:
            return False
        if unit.stage == "work" and unit.row.cancelled:
            self.cancelled(unit)
            return True
        unit.where, unit.lease, unit.silent = "released", None, True
        unit.deliveries -= 1
        self.counters["released"] += 1
        return True

    # -- commit ------------------------------------------------------------------------------

    def fence(self, lease: Lease) -> tuple[Unit | None, bool]:
        """Returns ``(unit to change, is the answer kind)``."""
        unit = self.holder(lease)
        if unit is not None:
            unit.last[lease.stage] = lease.attempt_id
            unit.where, unit.lease, unit.silent, unit.deliveries = "ended", None, False, 0
            return unit, True
        row = self.rows.get(lease.task_id)
        there = row.units.get(lease.unit) if row is not None else None
        repeated = there is not None and there.last.get(lease.stage) == lease.attempt_id
        if not repeated:
            self.counters["lost"] += 1
        return None, repeated

    def done(self, unit: Unit) -> None:
        unit.committed += 1
        unit.stage, unit.where, unit.outcome = "review", "queued", "review"
        self.counters["committed"] += 1
        if unit.first and unit.row.first is not None:
            unit.where = "held"
            self.counters["held"] += 1
        self._leave_group(unit)

    def _leave_group(self, unit: Unit) -> None:
        """A first try has ended; with the last of a task's, all that were held go to review."""
        row = unit.row
        if not unit.first or row.first is None:
            return
        row.first -= 1
        if row.first == 0:
            row.first = None
            for other in row.units.values():
                if other.where == "held":
                    other.where = "queued"
                    self.counters["held"] -= 1

    def retry(self, unit: Unit, kind: str, most: int) -> None:
        if unit.row.cancelled:
            self.cancelled(unit)
            return
        unit.retries[kind] += 1
        if unit.retries[kind] > most:
            self.bury(unit)
            return
        unit.where, unit.outcome = "delayed", "delayed"
        self.counters["retried" if kind == "retry" else "waited"] += 1

    def cancelled(self, unit: Unit) -> None:
        """Its task was cancelled before it could commit."""
        self.counters["cancelled"] += 1
        self._leave_group(unit)
        unit.where, unit.deliveries, unit.silent, unit.lease = "ended", 0, False, None
        self.end(unit, "cancelled")

    def promoted(self, unit: Unit) -> None:
        unit.where, unit.outcome = "queued", "queued"

    def settle(self, unit: Unit, verdict: str, decision: str, score: int | None) -> None:
        self.counters.update(("reviewed", verdict))
        if unit.first and verdict != "unverified":
            self.counters[f"{verdict}_first"] += 1
        if decision == "accepted":
            self.counters["accepted_first" if unit.first else "accepted_retried"] += 1
        if decision != "waiting":
            self.counters[decision] += 1
        unit.row.score = max(unit.row.score, -1 if score is None else score)
        if decision not in ("iterate", "waiting"):
            self.end(unit, decision)

    def iterate(self, unit: Unit, following: Assignment) -> None:
        if unit.row.cancelled:
            self.end(unit, "cancelled")
            return
        unit.outcome = "iterated"
        self._add(unit.row, following)

    def wait(self, unit: Unit, approval: str) -> None:
        if unit.row.cancelled:
            self.end(unit, "cancelled")
            return
        unit.where, unit.outcome, unit.approval = "waiting", "waiting", approval
        self.counters["with_people"] += 1

    def decided(self, unit: Unit, following: Assignment | None) -> None:
        """People let it go on, or ended it."""
        self.counters["with_people"] -= 1
        unit.where = "ended"
        self.counters["iterate" if following is not None else "rejected"] += 1
        if following is None:
            self.end(unit, "rejected")
        else:
            unit.outcome = "iterated"
            self._add(unit.row, following)

    def bury(self, unit: Unit) -> None:
        self.counters.update(("dead", f"dead_{unit.stage}"))
        if unit.stage == "work":
            self._leave_group(unit)
        unit.where, unit.deliveries, unit.silent, unit.lease = "dead", 0, False, None
        self.end(unit, "dead")

    def end(self, unit: Unit, outcome: str) -> None:
        row = unit.row
        unit.outcome = outcome
        row.ends[outcome] += 1
        row.open -= 1
        if row.open == 0:
            row.state, row.cancelled = next(e for e in _ENDS if row.ends[e] > 0), False
            self.counters[f"tasks_{row.state}"] += 1

    # -- people and time ---------------------------------------------------------------------

    def cancel(self, task_id: str) -> tuple[str, int]:
        """Returns ``(outcome, units ended at once)`` as `Control.cancel` does."""
        row = self.rows.get(task_id)
        if row is None:
            return "unknown", 0
        if row.state != "open":
            return "ended", 0
        row.cancelled = True
        waiting = [
            u
            for u in row.units.values()
            if u.stage == "work" and u.where in ("queued", "released", "delayed")
        ]
        asked = [u for u in row.units.values() if u.where == "waiting"]
        for unit in waiting:
            self.cancelled(unit)
        for unit in asked:
            self.counters["with_people"] -= 1
            unit.where = "ended"
            self.end(unit, "cancelled")
        return ("stopping" if row.state == "open" else "cancelled"), len(waiting) + len(asked)

    def revive(self, entry: str) -> bool:
        """A dead letter runs again, unless its task id has begun another life since."""
        unit = self.letters.get(entry)
        if unit is None:
            return False
        row, there = self.rows.get(unit.row.task_id), None
        if row is None:  # forgotten meanwhile: it is a task of its letters now
            row = self.rows[unit.row.task_id] = Ledger(unit.row.task_id, revived=True)
            self.counters["tasks"] += 1
        else:
            there = row.units.get(unit.name)
            if not row.revived if there is None else there.outcome != "dead":
                return False
            if row.state != "open":
                self.counters[f"tasks_{row.state}"] -= 1
        row.ends["dead"] -= there is not None
        unit.last = dict(there.last) if there is not None else {}
        unit.row = row
        row.units[unit.name] = unit
        row.state, row.open = "open", row.open + 1
        if row.first is not None and unit.first and unit.stage == "work":
            row.first += 1
        unit.retries.clear()
        unit.where = "queued"
        unit.outcome = "queued" if unit.stage == "work" else "review"
        del self.letters[entry]
        self.counters.subtract(("dead", f"dead_{unit.stage}"))
        return True

    def purge(self, entry: str) -> bool:
        unit = self.letters.pop(entry, None)
        if unit is None:
            return False
        unit.where = "ended"
        self.counters["dead"] -= 1
        return True

    def expire(self, task_id: str) -> None:
        """The row of an ended task is old enough to be forgotten."""
        assert self.rows.pop(task_id).state != "open"


def same(one: Lease, other: Lease) -> bool:
    """Do both carry the same token?"""
    return _token(one) == _token(other)


def _token(lease: Lease) -> tuple[str, int, str, str, int]:
    """What fences: the same consumer that hands work back and takes it again has the same."""
    return lease.stage, lease.stream, lease.consumer, lease.entry, lease.deliveries
