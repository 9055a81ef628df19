"""Turns one line into a task, or into reasons a person can act on."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson
from pydantic import BaseModel, ValidationError

from common.model import explain
from common.queue.keys import LANES
from common.queue.scene_queue import NewTask
from common.task import (
    SCENE_ALIASES,
    AnswerCheck,
    CommandCheck,
    FileCheck,
    Reference,
    ReferenceAction,
    Sampling,
    SceneName,
    StdoutCheck,
    Task,
)

_MAX_DEPTH = 100
"""orjson writes 254 levels, and a stream entry adds some of its own: far below that, far above
what anybody writes by hand."""
_MAX_PROBLEMS = 10
"""Enough to mend a line; a line of a hundred thousand unknown fields must not hold the rest up."""
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * 19
"""In a line whose digits are all made 0: four times as fast as a regular expression."""
_MODELS: dict[str, type[BaseModel]] = {
    "": Task, "sampling": Sampling, "reference": Reference, "actions": ReferenceAction,
    "stdout": StdoutCheck, "command": CommandCheck, "file": FileCheck, "answer": AnswerCheck,
}  # fmt: skip
"""Whose fields to suggest for a misspelt one, by the name it lies under."""


@dataclass(frozen=True)
class Bad:
    """Why a line is no task."""

    problems: tuple[tuple[str, str], ...]
    """(field, reason), at least one; the field is `(line)` where it is the line as a whole."""
    task_id: str | None = None


class Work(NamedTuple):
    """A good line: what it puts into the queue."""

    scene: str
    new: NewTask
    task: Task

    @property
    def weight(self) -> int:
        """Bytes it takes in the queue, about."""
        return len(self.new.payloads[0]) * len(self.new.payloads)


def parse(data: bytes, *, utf16: bool = False, agent: str = "llm") -> Work | Bad | None:
    """Return the work in a line, or what is wrong with it; None when it is blank.

    ``utf16``: the file it is from begins like one saved as UTF-16.
    ``agent``: who acts where the line does not say (FLEET_AGENT).
    """
    if not data.strip(b" \t\r\n\v\f\0" if utf16 else None):
        return None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return _line_problem(_why_no_json(data, utf16, error))
    if not isinstance(value, dict):
        return _line_problem(f"each line must be one JSON object {{…}}; this is {_kind(value)}")
    if _too_deep(data, value):
        return _bad(value, ("(line)", f"nested more than {_MAX_DEPTH} levels deep"))
    if _LONG_NUMBER in data.translate(_DIGITS) and (number := _too_big(data)):
        reason = f"the number {number[:40]} does not fit 64 bits; write it as text"
        return _bad(value, ("(line)", reason))
    try:
        task = Task.model_validate(value)
        if agent != "llm" and "agent" not in value:
            # After the id was made from the line alone: who acts must not change it.
            value = {**value, "task_id": task.task_id, "agent": agent}
            task = Task.model_validate(value)
        if "task_id" not in value or value["task_id"] is None:
            value = {**value, "task_id": task.task_id}
        payloads = _payloads(value, task.samples)
    except ValidationError as error:
        return _bad(value, *(_in_words(value, *found) for found in explain(error)[:_MAX_PROBLEMS]))
    except (TypeError, ValueError, RecursionError) as error:
        return _bad(value, ("(line)", f"cannot be queued: {error}"))
    lane = LANES.index(task.lane) + 1
    return Work(task.task_type, NewTask(task.task_id, lane, payloads), task)


def _payloads(value: dict[str, Any], samples: int) -> list[bytes]:
    """Return the assignments of a task, as `Assignment.encode` would write them.

    From the line itself, which has just been proved to be a task: a third of what it takes to
    build the models and write those. Raises `TypeError` for what JSON cannot say.
    """
    first = orjson.dumps({"task": value})
    if samples == 1:
        return [first]
    return [first, *(orjson.dumps({"task": value, "sample": n}) for n in range(1, samples))]


def too_long(size: int, limit: int) -> Bad:
    """Return what to say about a line that was not read because of its length, in bytes."""
    return _line_problem(
        f"{size:,} bytes long, and at most {limit:,} are read; shorten it or set "
        "FLEET_MAX_LINE_BYTES"
    )


def _line_problem(reason: str) -> Bad:
    return Bad((("(line)", reason),))


def _bad(value: dict[str, Any], *problems: tuple[str, str]) -> Bad:
    task_id = value.get("task_id")
    return Bad(problems, task_id[:128] if isinstance(task_id, str) else None)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    return names.get(type(value), "a list")


def _why_no_json(data: bytes, utf16: bool, error: orjson.JSONDecodeError) -> str:
    # JSON in UTF-16 has a NUL beside each of its quotes and braces, whatever the language.
    paired = data.count(0) * 5 > len(data) and b"\0\0\0" not in data
    if utf16 or paired or data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "looks like UTF-16; save as UTF-8"
    if 0 in data:
        return f"holds a NUL byte at byte {data.index(0) + 1}: was the file cut off by a crash?"
    try:
        text = data.decode()
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 at byte {wrong.start + 1}; save as UTF-8"
    reason = f"not valid JSON at character {error.pos + 1}: {error.msg}"
    if text[error.pos :].lstrip("-").startswith(("NaN", "Infinity")):
        reason += " (JSON has no NaN or Infinity)"
    return reason


def _too_deep(data: bytes, value: dict[str, Any]) -> bool:
    if data.count(b"[") + data.count(b"{") <= _MAX_DEPTH:
        return False
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _too_big(data: bytes) -> str | None:
    """Return a number that orjson would have rounded without a word."""
    found: list[str] = []

    def whole(text: str) -> int:
        if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
            found.append(text)
        return 0

    # The one reader that shows integers as they were written; too slow for every line.
    json.loads(data, parse_int=whole)
    return found[0] if found else None


def _in_words(value: dict[str, Any], field: str, reason: str) -> tuple[str, str]:
    """Say it as somebody who knows the format would."""
    if field == "task_type" and isinstance(kind := value.get("task_type"), str):
        known = [scene.value for scene in SceneName]
        hint = _did_you_mean(kind, [*known, *SCENE_ALIASES])
        return field, f"unknown scene {kind[:64]!r}{hint}; known: {', '.join(known)}"
    if reason == "unknown field":
        *path, name = field.split(".")
        while path and path[-1].isdecimal():
            path.pop()
        model = _MODELS.get(path[-1] if path else "")
        reason += _did_you_mean(name, list(model.model_fields) if model else [])
    return field, reason


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name[:64], known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
