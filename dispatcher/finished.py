"""Which tasks the store already holds the end of, for a queue that has forgotten them."""

from __future__ import annotations

from collections import defaultdict
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

        Another task under the same id, by its sha256, is another task. Only first revisions carry
        the sha256 of the line in the file: a decision counts where all of its sample's are ours.
        """
        if not (self._folder / task.task_id).is_dir():
            return False
        attempts = [(*a.split("-", 2)[:2], a) for a in self._store.attempts_of(task.task_id)]
        decided = {a for _, _, a in attempts if self._is_decided(task.task_id, a)}
        if len({sample for _, sample, a in attempts if a in decided}) < task.samples:
            return False
        firsts: defaultdict[str, set[str]] = defaultdict(set)
        ends = set()
        for revision, sample, attempt_id in attempts:
            if revision != "r1" and attempt_id not in decided:
                continue
            try:
                attempt = self._store.read_attempt(task.task_id, attempt_id)
            except StoreError:
                firsts[sample].add("")  # nobody knows whose it was: its sample runs again
                continue
            if attempt.assignment.task.scene != task.scene:
                continue  # tasks of one name in two scenes share the folder, nothing else
            if revision == "r1":
                firsts[sample].add(attempt.task_sha256)
            if attempt_id in decided:
                ends.add(sample)
        return sum(firsts[sample] == {task.sha256} for sample in ends) >= task.samples

    def _is_decided(self, task_id: str, attempt_id: str) -> bool:
        try:
            review = self._store.read_review(task_id, attempt_id)
        except StoreError:
            return False  # damaged: it is as if it were not there
        # What waited for people is nowhere any more: it has to be tried and asked for again.
        return review is not None and review.decision not in ("iterate", "waiting")
