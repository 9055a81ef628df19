"""Which tasks the store already holds the end of, for a queue that has forgotten them."""

from __future__ import annotations

from pathlib import Path

from common.store import Store, StoreError
from common.task import Task


class Finished:
    """The tasks in a store that were decided upon.

    The queue's ledger is what makes a task run once. It is gone after a FLUSHALL, a lost server,
    or its time; what was paid for is in the store, and need not be paid for again.
    """

    def __init__(self, output: Path) -> None:
        self._store = Store(output)
        self._folder = output / "trajectories"

    def __contains__(self, task: Task) -> bool:
        """Say whether every sample of this very task has been decided.

        Another task under the same id, by its sha256, is another task.
        """
        if not (self._folder / task.task_id).is_dir():
            return False
        same, decided = False, set()
        for attempt_id in self._store.attempts_of(task.task_id):
            revision, sample = attempt_id.split("-", 2)[:2]
            try:
                review = self._store.read_review(task.task_id, attempt_id)
                if review is None:
                    continue
                if revision == "r1" and not same:
                    first = self._store.read_attempt(task.task_id, attempt_id)
                    same = first.task_sha256 == task.sha256
            except StoreError:
                continue  # damaged: it is as if it were not there, and its sample runs again
            if review.decision != "iterate":
                decided.add(sample)
        return same and len(decided) >= task.samples
