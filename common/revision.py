"""Changes applied to a task: what a field is now, and the revision that follows from changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import JsonValue, ValidationError

from common.model import explain
from common.task import Assignment, Change, RevisionScore, Task
from common.trajectory import Trajectory

HINTS = "hints"
_TASK = "task."
_IDENTITY = {"task_id", "task_type", "samples", "agent", "metadata"}
"""What a task is and belongs to; another revision of it cannot have another."""


class CannotApply(ValueError):
    """A change does not fit the task it was meant for; the message says why."""


def value_of(assignment: Assignment, field: str) -> JsonValue:
    """Return what ``field`` is now: `hints`, or `task.` and a path; None where it is absent.

    Raises `CannotApply` for a field that no task has.
    """
    if field == HINTS:
        return list(assignment.hints)
    path = _path(field)
    value: Any = assignment.task.model_dump(mode="json")
    for name in path:
        if not isinstance(value, dict):
            return None
        value = value.get(name)
    return value  # type: ignore[no-any-return]


def apply(assignment: Assignment, changes: Iterable[Change]) -> Assignment:
    """Return the assignment with all ``changes`` in, each `from` compared with what it is now.

    Raises `CannotApply` naming the field, for one that is not what it was, or that the task
    would not be valid with.
    """
    data: dict[str, Any] = assignment.task.model_dump(mode="json")
    hints, original = assignment.hints, assignment.original_max_steps
    for change in changes:
        now = value_of(assignment, change.field)
        if now != change.before:
            raise CannotApply(f"{change.field} is {now!r} by now, not {change.before!r}")
        if change.field == HINTS:
            if not isinstance(change.after, list) or not all(
                isinstance(hint, str) for hint in change.after
            ):
                raise CannotApply("hints must be a list of sentences")
            hints = tuple(str(hint) for hint in change.after)
            continue
        if change.field == "task.max_steps":
            original = original or assignment.task.max_steps
        _put(data, _path(change.field), change.after)
    try:
        task = Task.model_validate(data)
    except ValidationError as error:
        raise CannotApply("; ".join(f"task.{f}: {why}" for f, why in explain(error))) from None
    return assignment.model_copy(
        update={"task": task, "hints": hints, "original_max_steps": original}
    )


def revised(
    before: Assignment, changes: Iterable[Change], history: tuple[RevisionScore, ...]
) -> Assignment:
    """Return the next revision: the same task with the changes in, and what came before.

    Raises `CannotApply` as `apply` does.
    """
    changes = tuple(changes)
    return apply(before, changes).model_copy(
        update={"revision": before.revision + 1, "changes": changes, "history": history}
    )


def history_with(
    trajectory: Trajectory, score: int | None, rubric: float | None
) -> tuple[RevisionScore, ...]:
    """Return what all revisions so far came to, this attempt's the last."""
    last = RevisionScore(
        revision=trajectory.revision,
        attempt_id=trajectory.attempt_id,
        score=score,
        passed=trajectory.verdict.passed,
        reward=trajectory.verdict.reward,
        rubric=rubric,
    )
    return (*trajectory.assignment.history, last)


def _path(field: str) -> list[str]:
    path = field.removeprefix(_TASK).split(".")
    if not field.startswith(_TASK) or path[0] not in Task.model_fields:
        raise CannotApply(f"a task has no field {field!r}")
    if path[0] in _IDENTITY:
        raise CannotApply(f"{field} says what the task is: another value is another task")
    return path


def _put(data: dict[str, Any], path: list[str], value: JsonValue) -> None:
    *outer, last = path
    for name in outer:
        inner = data.get(name)
        if inner is None:
            inner = data[name] = {}
        if not isinstance(inner, dict):
            raise CannotApply(f"task.{'.'.join(path)}: {name} holds no fields")
        data = inner
    if value is None:
        data.pop(last, None)
    else:
        data[last] = value
