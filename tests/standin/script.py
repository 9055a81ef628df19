"""What the stand-in says for each task, and which of its requests go wrong.

A script file maps task ids to entries; `*` is for every task not named:

    {"fib-1": {"turns": [{"tool": "run_python", "arguments": {"code": "print(1)"}},
                         {"tool": "finish", "arguments": {"answer": ""}}],
               "faults": {"1": "429:0.2", "3": "cut"}},
     "*":     {"reference": {"actions": [...], "answer": "42"}}}

An entry may have `variants`: the first one whose `if` is found in the chat, or is the model asked
for, plays instead: `"variants": [{"if": "a sentence", "turns": [...]}]`. Requests that offer the
tool `grade` or `propose` (a judge's, a proposer's) belong to the entries `@grade` and `@propose`.

`reference` plays a task's known-good solution and finishes with its answer. Faults are keyed by
the number of the request within its task, from 1; `*` is every request. See `faults.py`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MARKER = re.compile(r"\[\[task:([\w.:\-]{1,128})\]\]")


@dataclass(frozen=True)
class Turn:
    """One scripted answer: a tool call, several, or text."""

    tool: str | None = None
    arguments: Any = None
    """An object; a string goes out as it is, so it can be broken on purpose."""
    text: str | None = None
    calls: tuple[dict[str, Any], ...] = ()
    """Several calls at once, each `{"tool": …, "arguments": …}`."""
    reasoning: str | None = None
    """Sent as `reasoning_content`, as DeepSeek does."""
    signature: str | None = None
    """Sent as Gemini's thought signature; a later request that lacks it is refused with 400."""
    usage: dict[str, Any] | None = None
    """Instead of a usage counted from characters."""
    delay: float = 0.0
    """Seconds before the answer."""
    finish_reason: str | None = None


@dataclass(frozen=True)
class Entry:
    """What happens to the requests of one task."""

    turns: tuple[Turn, ...]
    faults: dict[str, str] = field(default_factory=dict)
    variants: tuple[tuple[str, tuple[Turn, ...]], ...] = ()

    def turns_for(self, body: dict[str, Any]) -> tuple[Turn, ...]:
        """Return what is played in the chat of this request."""
        said = [m.get("content") for m in body.get("messages", ()) if isinstance(m, dict)]
        for needle, turns in self.variants:
            if body.get("model") == needle or any(
                isinstance(content, str) and needle in content for content in said
            ):
                return turns
        return self.turns

    def fault(self, request: int) -> str | None:
        return self.faults.get(str(request), self.faults.get("*"))


class Script:
    """All entries, by task id."""

    def __init__(self, entries: dict[str, Any] | None = None) -> None:
        self.entries = {task: _entry(raw) for task, raw in (entries or {}).items()}

    @classmethod
    def load(cls, path: Path) -> Script:
        return cls(json.loads(path.read_text("utf-8")))

    def add(self, task: str, *turns: Turn, faults: dict[str, str] | None = None) -> None:
        self.entries[task] = Entry(turns, faults or {})

    def __getitem__(self, task: str) -> Entry | None:
        return self.entries.get(task, self.entries.get("*"))


def task_of(headers: Any, messages: list[Any], tools: list[Any]) -> str:
    """Return the task a request belongs to: by header, else by a `[[task:…]]` in the chat."""
    for tool in tools:
        if (name := tool["function"]["name"]) in ("grade", "propose"):
            return f"@{name}"
    if named := headers.get("x-fleet-task"):
        return str(named)
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str) and (found := _MARKER.search(content)):
            return found[1]
    return "*"


def _entry(raw: dict[str, Any]) -> Entry:
    unknown = set(raw) - {"turns", "faults", "reference", "variants"}
    if unknown:
        raise ValueError(f"unknown keys in a script entry: {sorted(unknown)}")
    if "reference" in raw:
        reference = raw["reference"]
        actions = [*reference.get("actions", ())]
        finish = {"tool": "finish", "arguments": {"answer": reference.get("answer", "")}}
        turns = [Turn(**action) for action in (*actions, finish)]
    else:
        turns = [Turn(**_tupled(turn)) for turn in raw["turns"]]
    variants = tuple(
        (variant["if"], tuple(Turn(**_tupled(turn)) for turn in variant["turns"]))
        for variant in raw.get("variants", ())
    )
    return Entry(tuple(turns), raw.get("faults", {}), variants)


def _tupled(turn: dict[str, Any]) -> dict[str, Any]:
    return {**turn, "calls": tuple(turn.get("calls", ()))}
