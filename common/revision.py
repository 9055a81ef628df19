"""Changes applied to a task: what a field is now, and the revision that follows from changes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from pydantic import JsonValue, ValidationError

from common.model import explain
from common.task import Assignment, Change, RevisionScore, Task
from common.trajectory import Trajectory

HINTS = "hints"
_TASK = "task."
_TOLD = 80
"""Characters of a value in a message; a value may be a whole file."""
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
    now: JsonValue = _look(assignment.task.model_dump(mode="json"), _path(field))
    return now


def same(one: JsonValue, other: JsonValue) -> bool:
    """Are two values the same JSON? 1 is 1.0, but true is not 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def apply(assignment: Assignment, changes: Iterable[Change]) -> Assignment:
    """Return the assignment with all ``changes`` in, each `from` compared with what it is then.

    Raises `CannotApply` naming the field, for one that is not what it was (another of the changes
    may have touched it), or that the task would not be valid with, or would not keep as it is.
    """
    changes = tuple(changes)
    data: dict[str, Any] = assignment.task.model_dump(mode="json")
    hints, original = assignment.hints, assignment.original_max_steps
    for change in changes:
        if change.field == HINTS:
            _expect(change, list(hints))
            hints = _sentences(change.after)
            continue
        path = _path(change.field)
        _expect(change, _look(data, path))
        if change.field == "task.max_steps":
            original = original or assignment.task.max_steps
        _put(data, path, deepcopy(change.after))
    try:
        task = Task.model_validate(data)
    except ValidationError as error:
        raise CannotApply("; ".join(f"task.{f}: {why}" for f, why in explain(error))) from None
    made = assignment.model_copy(
        update={"task": task, "hints": hints, "original_max_steps": original}
    )
    try:
        made.encode()
    except (TypeError, ValueError) as error:
        raise CannotApply(f"it could not be stored: {error}") from None
    _kept(task, changes)
    return made


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
    if "" in path:
        raise CannotApply(f"{field!r} is no path to a field")
    if path[0] in _IDENTITY:
        raise CannotApply(f"{field} says what the task is: another value is another task")
    return path


def told(value: JsonValue) -> str:
    """Put a value into a message: as JSON, the long ones cut."""
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()
    return text if len(text) <= _TOLD else f"{text[:_TOLD]}…"


def _expect(change: Change, now: Any) -> None:
    if not same(now, change.before):
        was = told(change.before)
        raise CannotApply(f"{change.field} is {told(now)} by now, not {was}")


def _sentences(value: JsonValue) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(hint, str) for hint in value):
        raise CannotApply("hints must be a list of sentences")
    return tuple(str(hint) for hint in value)


def _look(data: Any, path: list[str]) -> Any:
    for name in path:
        if not isinstance(data, dict):
            return None
        data = data.get(name)
    return data


def _kept(task: Task, changes: Iterable[Change]) -> None:
    """Refuse a value that the task turned into another one, as "20" into 20.

    Objects and lists may be filled in with defaults.
    """
    data = task.model_dump(mode="json")
    for change in changes:
        if change.field == HINTS or isinstance(change.after, dict | list):
            continue
        held = _look(data, _path(change.field))
        if not same(held, change.after):
            wanted = told(change.after)
            raise CannotApply(f"{change.field} cannot be {wanted}: it would be {told(held)}")


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
