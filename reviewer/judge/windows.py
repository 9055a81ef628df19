"""A trajectory as data a judge can be shown: JSON lines in windows, nothing left out of it.

Blind: neither who acted nor which try it is, no hint, no check, no earlier score. A window is a
run of whole steps; a step too long for one goes in parts. Each window carries the task (of a very
long one the beginning; the rest comes before the first step), and what is on record about the
steps that only other windows show.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.llm.types import Capabilities
from common.trajectory import Step, Trajectory

WINDOWING = 2
"""Raised with every change of what a judge is shown: no calibration holds across two."""

_MOST = 48_000
"""Bytes: judges lose sight of the middle of prompts long before their context is full."""
_LEAST = 4_000
_BYTES_PER_TOKEN = 3
"""Of UTF-8: fewer than English has, and what one Chinese character takes."""
_ROOM = 400
"""Bytes that a part of a step, or of the task, has at the least."""
_MARKED = 80
"""Bytes that say which part of the task a line holds."""
_LONGEST_NAME = 100  # characters of a tool's name; a model may call a tool anything
_ESCAPED = {c: f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"} | {
    "<|": "\\u003c|",
    "<\uff5c": "\\u003c\uff5c",
}
"""What JSON leaves as it is: line breaks, so that one line of ours is one line to any reader, and
what begins a control token of a chat (`<|im_end|>`), which some servers would obey."""


_COUNTED = "number_of_steps_not_shown_here"


@dataclass(frozen=True)
class Window:
    """What one question shows of a trajectory."""

    number: int
    """From 1."""
    of: int
    data: str
    """JSON lines."""
    shown: frozenset[int]
    """Ids of the steps in it, whole or in part."""
    steps: frozenset[int]
    """Ids of all steps of the trajectory."""
    weight: float
    """In steps; a part of one counts as its share."""


@dataclass(frozen=True)
class _Line:
    step: int | None
    """Whose it is; None for the task, and for how it ended where there was no step."""
    text: str
    weight: float


def budget_of(capabilities: Capabilities) -> int:
    """Return how many bytes of a record one prompt of a model may hold: half of its context."""
    return max(_LEAST, min(_MOST, capabilities.max_context * _BYTES_PER_TOKEN // 2))


def windows(trajectory: Trajectory, budget: int) -> tuple[Window, ...]:
    """Return the trajectory in windows of at most ``budget`` bytes, or little more."""
    description = trajectory.assignment.task.description
    task, rest = _task(description, budget // 3)
    room = budget - _size(task)
    groups = list(_groups(_lines(trajectory, rest, room), room))
    if len(groups) > 1:  # then each has to say what the others show
        room -= budget // 4
        groups = list(_groups(_lines(trajectory, rest, room), room))
    every = frozenset(step.step_id for step in trajectory.steps)
    made = []
    for number, group in enumerate(groups, 1):
        shown = frozenset(line.step for line in group if line.step is not None)
        head = [task]
        if len(groups) > 1:
            head.append(_elsewhere(trajectory.steps, shown, budget // 4))
        made.append(
            Window(
                number=number,
                of=len(groups),
                data="\n".join([*head, *(line.text for line in group)]),
                shown=shown,
                steps=every,
                weight=sum(line.weight for line in group),
            )
        )
    return tuple(made)


def _task(description: str, limit: int) -> tuple[str, str]:
    """Return the line with the task that every window carries, and what did not fit there."""
    whole = _json({"task": description})
    if _size(whole) <= limit:
        return whole, ""
    head = _fitting(description[:limit], limit - _MARKED)
    return _json({"task": head, "task_goes_on_with_part": 2}), description[len(head) :]


def _lines(trajectory: Trajectory, rest: str, room: int) -> Iterator[_Line]:
    """Yield the rest of the task, every step, and how it ended, in lines of ``room`` bytes."""
    number = 2
    while rest:
        piece = _fitting(rest[:room], max(_ROOM, room - _MARKED))
        rest = rest[len(piece) :]
        yield _Line(None, _json({"task_part": number, "task": piece, "more": bool(rest)}), 0.0)
        number += 1
    for step in trajectory.steps:
        yield from _step(step, room)
    last = trajectory.steps[-1].step_id if trajectory.steps else None
    facts = {"ended": trajectory.stop_reason.value, "after_step": last}
    texts = {"final_answer": trajectory.final_result}
    yield from _fitted(last, facts, facts | texts, texts, room)


def _step(step: Step, room: int) -> Iterator[_Line]:
    action, seen = step.action, step.observation
    facts: dict[str, Any] = {
        "step": step.step_id, "tool": _name(action.tool),
        "success": step.success, "exit_code": step.exit_code,
    }  # fmt: skip
    if seen.truncated_from is not None:
        facts["observation_cut_from"] = seen.truncated_from
    elif seen.blobs:
        facts["attachments"] = [blob.media_type for blob in seen.blobs]
    said = {"thought": step.thought, "arguments": action.arguments, "observation": seen.text}
    texts = {
        name: value if isinstance(value, str) else _json(value) for name, value in said.items()
    }
    yield from _fitted(step.step_id, facts, facts | said, texts, room)


def _fitted(
    step: int | None, facts: dict[str, Any], whole: Any, texts: Mapping[str, str], room: int
) -> Iterator[_Line]:
    """Yield one line, or as many parts of it as its texts need; each part repeats the facts."""
    line = _json(whole)
    if _size(line) <= room:
        yield _Line(step, line, 1.0)
        return
    marked = _json({**facts, "part": 10**6, "parts": 10**6})
    parts = list(_parts(texts, max(_ROOM, room - _size(marked))))
    for number, part in enumerate(parts, 1):
        text = _json({**facts, "part": number, "parts": len(parts), **part})
        yield _Line(step, text, 1 / len(parts))


def _parts(texts: Mapping[str, str], room: int) -> Iterator[dict[str, str]]:
    part: dict[str, str] = {}
    left = room
    for name, text in texts.items():
        key = len(name) + 8  # its quotes, colon and comma
        at = 0
        while at < len(text):
            piece = _fitting(text[at : at + max(0, left)], left - key)
            if not piece:
                yield part
                part, left = {}, room
                continue
            part[name] = piece
            left -= _size(_json(piece)) + key
            at += len(piece)
            if at < len(text):
                yield part
                part, left = {}, room
    if part:
        yield part


def _fitting(text: str, room: int) -> str:
    """Return a beginning of ``text`` that takes at most ``room`` bytes as JSON, or about."""
    end = len(text)
    while end > 0 and (size := _size(_json(text[:end]))) > room:
        end = max(0, min(end - 1, end * room // size))
    return text[:end]


def _groups(lines: Iterable[_Line], room: int) -> Iterator[list[_Line]]:
    group: list[_Line] = []
    size = 0
    for line in lines:
        more = _size(line.text) + 1
        if group and size + more > room:
            yield group
            group, size = [], 0
        group.append(line)
        size += more
    yield group


def _elsewhere(steps: Sequence[Step], shown: frozenset[int], limit: int) -> str:
    """Return what is on record about steps that are not here: ids, tools, how each call went.

    What does not fit is counted: by tool, and the tools that were called least all together.
    """
    calls: dict[str, dict[str, list[int]]] = {}
    for step in steps:
        if step.step_id not in shown:
            went = "succeeded" if step.success else "failed"
            calls.setdefault(_name(step.action.tool), {}).setdefault(went, []).append(step.step_id)
    told = {tool: {w: _ranges(ids) for w, ids in by.items()} for tool, by in calls.items()}
    line = _json({"steps_not_shown_here": told})
    if _size(line) <= limit:
        return line
    counts = {tool: {w: len(ids) for w, ids in by.items()} for tool, by in calls.items()}
    ordered = sorted(counts, key=lambda tool: -sum(counts[tool].values()))
    left = limit - _MARKED - _size(_json(_COUNTED))
    named: dict[str, dict[str, int]] = {}
    for tool in ordered:
        left -= _size(_json({tool: counts[tool]}))
        if left < 0:
            break
        named[tool] = counts[tool]
    others = Counter[str]()
    for tool in ordered[len(named) :]:
        others.update(counts[tool])
    return _json({_COUNTED: named} | ({"with_other_tools": dict(others)} if others else {}))


def _name(tool: str) -> str:
    return tool if len(tool) <= _LONGEST_NAME else tool[: _LONGEST_NAME - 1] + "…"


def _ranges(ids: Sequence[int]) -> str:
    """Return ids as a person writes them: `1-4, 7`."""
    runs: list[list[int]] = []
    for one in ids:
        if runs and one == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], one]
        else:
            runs.append([one])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    for raw, escape in _ESCAPED.items():
        text = text.replace(raw, escape)
    return text


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
