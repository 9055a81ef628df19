"""Changes applied to a task: only to what it still is, and only to what it can be."""

from __future__ import annotations

from typing import Any

import pytest

from common.revision import CannotApply, apply, history_with, revised, same, value_of
from common.task import Assignment, Change
from tests.helpers import task
from tests.reviewer.endings import ended, judged

BEFORE = Assignment(
    task=task(max_steps=10, sampling={"model": "m"}, constraints={"memory_mb": 256}),
    hints=("Plan first.",),
)


def change(field: str, before: Any, after: Any) -> Change:
    return Change(field=field, before=before, after=after, reason="r", level="red")


def test_changes_go_where_their_fields_say_and_nowhere_else() -> None:
    made = apply(
        BEFORE,
        [
            change("hints", ["Plan first."], ["Read twice."]),
            change("task.max_steps", 10, 20),
            change("task.sampling.temperature", None, 0.7),
            change("task.sampling.model", "m", None),
            change("task.constraints.memory_mb", 256, 512),
            change("task.constraints.files", None, {"a.txt": "1"}),
            change("task.checks", [], [{"type": "stdout", "expected": "1"}]),
        ],
    )
    assert made.hints == ("Read twice.",)
    assert (made.task.max_steps, made.original_max_steps) == (20, 10)
    assert (made.task.sampling.temperature, made.task.sampling.model) == (0.7, None)
    assert made.task.constraints == {"memory_mb": 512, "files": {"a.txt": "1"}}
    assert made.task.checks == judged().checks
    assert BEFORE.task.constraints == {"memory_mb": 256}
    untouched = {"max_steps", "sampling", "constraints", "checks"}
    assert made.task.model_dump(exclude=untouched) == BEFORE.task.model_dump(exclude=untouched)


def test_what_is_absent_is_none_and_null_takes_a_value_away() -> None:
    assert value_of(BEFORE, "task.constraints.pids") is None
    assert value_of(BEFORE, "task.max_steps.deeper") is None
    without = apply(BEFORE, [change("task.constraints.memory_mb", 256, None)])
    assert without.task.constraints == {}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([change("task.max_steps", 11, 20)], "task.max_steps is 10 by now, not 11"),
        ([change("hints", [], ["x"])], "by now, not []"),
        ([change("hints", ["Plan first."], ["x", 1])], "list of sentences"),
        ([change("task.max_steps", 10, 501)], "task.max_steps: .*500"),
        ([change("task.max_steps", 10, None)], "cannot be null: it would be 10"),
        ([change("task.max_steps", 10, "20")], 'cannot be "20": it would be 20'),
        ([change("task.max_steps", 10, True)], "cannot be true: it would be 1"),
        ([change("task.sampling.warmth", None, 1)], "task.sampling.warmth: unknown field"),
        ([change("task.sampling.model.name", None, 1)], "model holds no fields"),
        ([change("task.agent", "llm", "oracle")], "another value is another task"),
        ([change("task.colour", None, "red")], "no field 'task.colour'"),
        ([change("constraints.pids", None, 9)], "no field"),
        ([change("task.constraints..pids", None, 9)], "no path to a field"),
        ([change("task.constraints.pids", None, 2**64)], "could not be stored"),
        ([change("hints", ["Plan first."], ["\udc00"])], "could not be stored"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(changes: list[Change], why: str) -> None:
    with pytest.raises(CannotApply, match=why.replace("[]", r"\[\]")):
        apply(BEFORE, changes)


@pytest.mark.parametrize(
    "second",
    [
        change("task.constraints.memory_mb", 256, 1024),
        change("task.constraints", {"memory_mb": 256}, {}),
    ],
)
def test_a_second_change_of_the_same_is_refused_not_laid_over_the_first(second: Change) -> None:
    first = change("task.constraints.memory_mb", 256, 512)
    with pytest.raises(CannotApply, match="by now"):
        apply(BEFORE, [first, second])


def test_a_whole_file_in_a_field_does_not_flood_the_message() -> None:
    long = apply(BEFORE, [change("task.constraints.files", None, {"a": "x" * 10_000})])
    with pytest.raises(CannotApply) as told:
        apply(long, [change("task.constraints.files", None, {})])
    assert len(str(told.value)) < 300


def test_values_given_in_a_change_are_not_altered_by_the_next_one() -> None:
    given = change("task.constraints", {"memory_mb": 256}, {"network": "none"})
    made = apply(BEFORE, [given, change("task.constraints.pids", None, 9)])
    assert made.task.constraints == {"network": "none", "pids": 9}
    assert given.after == {"network": "none"}


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        (1, 1.0, True), (1, True, False), (0, False, False), (None, False, False),
        ([1, {"a": True}], [1.0, {"a": True}], True), ([True], [1], False),
        ({"a": 1}, {"a": True}, False), ({"a": 1}, {"a": 1, "b": None}, False),
        ([1], [1, 2], False), ("1", 1, False),
    ],
)  # fmt: skip
def test_true_is_not_one(one: Any, other: Any, alike: bool) -> None:
    assert same(one, other) is same(other, one) is alike


def test_the_next_revision_knows_what_changed_and_what_came_before() -> None:
    attempt = ended(assignment=BEFORE)
    more = change("task.max_steps", 10, 20)
    after = revised(BEFORE, [more], history_with(attempt, 15, 0.5))
    assert (after.revision, after.sample, after.changes) == (2, 0, (more,))
    [past] = after.history
    assert (past.attempt_id, past.score, past.rubric) == (attempt.attempt_id, 15, 0.5)
    again = revised(after, [change("task.max_steps", 20, 15)], ())
    assert again.original_max_steps == 10
