"""The first tries at a task: one a sample, none that infrastructure broke, none that had help."""

from __future__ import annotations

from pathlib import Path

from common.failures import Failure, FailureKind
from common.store import Store
from common.task import Assignment
from reviewer.tries import Tries
from tests.common.stored import FIRST, made
from tests.helpers import task
from tests.reviewer.endings import FAILED, PASSED


def test_a_group_is_what_each_sample_came_to_at_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    asked = Assignment(task=task("t", samples=2))
    broken = Failure(kind=FailureKind.SANDBOX_LOST, message="gone")
    one, other = FIRST, FIRST.replace("s0", "s1")
    for attempt_id, revision, fields in (
        (one, 1, {"verdict": PASSED}),
        (other, 1, {"verdict": FAILED}),
        (other.replace("d1", "d2"), 1, {"verdict": FAILED, "failure": broken}),
        (FIRST.replace("r1", "r2"), 2, {"verdict": PASSED}),
    ):
        sample = int("s1" in attempt_id)
        store.write_attempt(
            made("t", attempt_id, revision=revision, sample=sample,
                 assignment=asked.model_copy(update={"sample": sample, "revision": revision}),
                 **fields)
        )  # fmt: skip
    first = store.read_attempt("t", one)
    group, siblings = Tries(store).around(first)
    assert group is not None and group.attempts == (one, other)
    assert [s.attempt_id for s in siblings] == [other]
    later = store.read_attempt("t", FIRST.replace("r1", "r2"))
    group, siblings = Tries(store).around(later)
    assert group is None and [s.attempt_id for s in siblings] == [one, other]
