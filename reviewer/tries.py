"""The first tries at a task with several samples: what one attempt is compared with."""

from __future__ import annotations

from functools import lru_cache

from common.failures import FailureClass
from common.groups import Try, group_of
from common.review import Group
from common.store import Store, StoreError
from common.trajectory import Trajectory

_REMEMBERED = 8192
"""Attempts; a few hundred bytes each."""


class _NotOurs(Exception):
    """Of another scene's task, or broken by infrastructure: no try that counts."""


class Tries:
    """Finds the first tries at a task in the store, each read once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._read = lru_cache(maxsize=_REMEMBERED)(self._look)

    def around(self, trajectory: Trajectory) -> tuple[Group | None, tuple[Try, ...]]:
        """Return the group a first try belongs to, and the other first tries at its task.

        No group for a task of one sample, and for revisions: they had help.
        """
        if trajectory.assignment.task.samples < 2:
            return None, ()
        tries = self.first_tries(trajectory)
        others = tuple(one for one in tries if one.attempt_id != trajectory.attempt_id)
        return (group_of(tries) if trajectory.revision == 1 and tries else None), others

    def first_tries(self, trajectory: Trajectory) -> list[Try]:
        """Return what each sample's first try came to; none of those that infrastructure broke."""
        found: dict[str, Try] = {}
        scene = trajectory.assignment.task.scene
        for attempt_id in self._store.attempts_of(trajectory.task_id):
            revision, sample, _ = attempt_id.split("-", 2)
            if revision != "r1":
                continue
            try:
                found[sample] = self._read(trajectory.task_id, attempt_id, scene)
            except (StoreError, _NotOurs):
                continue  # of several, the last that counts is the one that was committed
        return list(found.values())

    def _look(self, task_id: str, attempt_id: str, scene: str) -> Try:
        one = self._store.read_attempt(task_id, attempt_id)
        failure = one.failure
        if one.assignment.task.scene != scene or (
            failure is not None and failure.failure_class is not FailureClass.AGENT
        ):
            raise _NotOurs
        return Try(attempt_id, one.verdict.passed, one.verdict.reward, len(one.steps))
