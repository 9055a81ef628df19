"""Grounding: whether the values an agent passed to its tools come from anywhere it could know.

A name, path, id or number that neither the task nor any earlier result holds was made up, or
guessed. Prose and programs are the agent's own and are not looked up; nor are the settings of a
call, such as a time limit or where on a screen to tap, and how it calls a file it creates. What
it writes itself does not make a value known: else a comment could vouch for what it made up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import JsonValue

from common.trajectory import Step, Trajectory

_PROSE = {
    "answer", "body", "cmd", "code", "command", "comment", "content", "contents", "data",
    "description", "diff", "explanation", "expression", "file_content", "file_text", "html",
    "input", "input_text", "instruction", "instructions", "message", "new_str", "note", "notes",
    "old_str", "patch", "pattern", "plan", "program", "prompt", "queries", "query", "question",
    "questions", "reason", "reasoning", "regex", "replacement", "script", "search_query",
    "source_code", "sql", "stdin", "subject", "summary", "text", "thought", "title",
}  # fmt: skip
"""Names of arguments whose value is text of the agent's own."""
_CHOSEN = {
    "bbox", "button", "coordinate", "coordinates", "count", "direction", "duration", "end_x",
    "end_y", "height", "limit", "max_results", "max_tokens", "n", "offset", "page", "page_size",
    "point", "position", "seed", "start_x", "start_y", "temperature", "timeout", "top_k",
    "wait", "width", "x", "x1", "x2", "y", "y1", "y2",
}  # fmt: skip
"""Settings of a call: the agent's to choose."""
_OWN = _PROSE | _CHOSEN
_CONTENT = {"content", "contents", "file_content", "file_text", "source_code"}
"""Arguments that become a file."""
_CREATES = re.compile(r"write|creat|save|append|mkdir|touch")
"""In the name of a tool that makes what its path names."""
_PLACES = {
    "dir", "directory", "file", "file_name", "file_path", "filename", "filepath", "folder", "path",
}  # fmt: skip
"""Where a file is, or is to be."""
_TARGETS = {"dest_path", "destination_path", "dst", "new_path", "output_file", "output_path"}
"""Where a file is to be, whatever the tool."""
Forms = tuple[str, ...]
"""The ways one value may be written."""
_LONGEST = 200
"""Characters of a string that is still looked up."""
_MOST_WORDS = 8
"""Of a string that is no sentence."""
_MOST_LEAVES = 20_000
"""Arguments looked at in one attempt, spread over its steps; about 30 ms."""
_MOST_SCANNED = 40 << 20
"""Characters searched for one attempt, 4.5 ns each at worst and a tenth of that mostly. Only
attempts of hundreds of steps with long results need more; of their values, an even sample counts.
"""
_LINEAR_FROM = 30_000
"""Characters from which `str.find` never looks at one twice; below, at worst once for every
second character of what it is looking for (CPython's fastsearch.h), a fifth as slow each."""
_LOWERING = 3
"""Putting a character beyond ASCII in lower case takes as long as searching so many."""
_MOST_INSIDE = 2000
"""Mentions of a number inside longer ones, after which it is not there."""
_INSIDE = 100
"""A mention inside a longer number takes as long as searching so many characters."""
_RUN = re.compile(r"\d{0,1000}")
_STRIDE = 7919
"""A prime: every so many values modulo their number gives an even sample of them."""


@dataclass(frozen=True)
class _Use:
    """Where a value was first used, and what had been seen and written until then."""

    step_id: int
    seen: int
    written: int | None
    """None: to have written of it proves nothing."""


class _Texts:
    """Texts in the order an agent came across them, searched from the newest."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._newest_first: str | None = None
        self._lowered: str | None = None
        self._ascii = True
        self.size = 0
        self.scanned = 0

    def add(self, text: str) -> None:
        if text:
            self._texts.append(text)
            self._ascii = self._ascii and text.isascii()
            self.size += len(text) + 1

    def price(self, forms: Forms, size: int) -> int:
        """Return the most characters it can take to look up ``forms`` in the oldest ``size``."""
        scan = size * _again(size, max(map(len, forms)))
        lowering = 0 if self._lowered else scan + self._lowering()
        return scan * len(forms) + lowering

    def have(self, forms: Forms, size: int) -> bool:
        """Whether one of ``forms`` is in the oldest ``size`` characters, in whatever case."""
        start = self.size - size
        if self._lowered is None:
            # Most values are found as they are, and most attempts need no lower case.
            if self._newest_first is None:
                self._newest_first = "\n".join(["", *reversed(self._texts)])
            if any(self._find(form, self._newest_first, start) for form in forms):
                return True
            if forms[0].lower() == forms[0].upper():
                return False
            self.scanned += self._lowering()
            # One by one: a single character beyond ASCII makes a text slow, and most have none.
            self._lowered = "\n".join(["", *map(_lower, reversed(self._texts))])
        return any(self._find(_lower(form), self._lowered, start) for form in forms)

    def _lowering(self) -> int:
        """Return how many characters could be searched while all are put in lower case."""
        return self.size if self._ascii else _LOWERING * self.size

    def _find(self, form: str, text: str, start: int) -> bool:
        """Whether ``form`` is there; digits at its ends must not be part of a longer number."""
        again, at = _again(len(text) - start, len(form)), start
        for _ in range(_MOST_INSIDE):
            found = text.find(form, at)
            self.scanned += again * ((found if found >= 0 else len(text)) - at)
            if found < 0:
                return False
            end = found + len(form)
            starts_inside = form[0].isdecimal() and text[found - 1 : found].isdecimal()
            if not starts_inside and not (form[-1].isdecimal() and text[end : end + 1].isdecimal()):
                return True
            at = found + 1
            if starts_inside and (run := _RUN.match(text, found)):
                at = max(at, run.end())
            self.scanned += _INSIDE + at - found
        return False


def grounded(trajectory: Trajectory) -> tuple[float, list[int]] | None:
    """Return the share of values that come from somewhere, and the steps that used others first.

    Each value counts once, where it is first used. None where there is nothing to look up.
    """
    seen, written = _given(trajectory), _Texts()
    first = _first_uses(trajectory.steps, seen, written)
    values = list(first)
    looked_up, unfounded = 0, []
    for forms in _spread(values):
        use = first[forms]
        price = seen.price(forms, use.seen)
        if use.written is not None:
            price += written.price(forms, use.written)
        # Whether a value fits does not depend on whether it is there: the sample stays even.
        if looked_up and seen.scanned + written.scanned + price > _MOST_SCANNED:
            break
        looked_up += 1
        if seen.have(forms, use.seen):
            continue
        if use.written is None or not written.have(forms, use.written):
            unfounded.append(use.step_id)
    if not looked_up:
        return None
    return 1 - len(unfounded) / looked_up, sorted(set(unfounded))


def _first_uses(steps: tuple[Step, ...], seen: _Texts, written: _Texts) -> dict[Forms, _Use]:
    """Return each value with its first use; and fill in what was seen and written on the way."""
    first: dict[Forms, _Use] = {}
    most = _MOST_LEAVES // max(len(steps), 1)
    for step in steps:
        before, own = written.size, _own_names(step)
        created: list[str] = []
        for name, value in islice(_leaves(step.action.arguments, most), most):
            if name is None:
                if isinstance(value, str):
                    written.add(value)
            elif forms := _forms(value):
                if name in own:
                    created += forms
                elif forms not in first:
                    # A file that turned out to be there, and that a program of its own names.
                    there = step.success and name in _PLACES
                    first[forms] = _Use(step.step_id, seen.size, before if there else None)
        seen.add(step.observation.text)
        for path in created:
            seen.add(path)
    return first


def _own_names(step: Step) -> set[str]:
    """Return the arguments of a call that say how something is called which it created."""
    if not step.success:
        return set()
    if _CREATES.search(step.action.tool.lower()) or not _CONTENT.isdisjoint(step.action.arguments):
        return _PLACES | _TARGETS
    return _TARGETS


def _given(trajectory: Trajectory) -> _Texts:
    """Return what the agent knows before its first step."""
    seen = _Texts()
    seen.add(trajectory.assignment.task.description)
    for hint in trajectory.assignment.hints:
        seen.add(hint)
    seen.add(_text(trajectory.tools))  # enums, defaults and examples among the rest
    for message in trajectory.messages:
        if message.get("role") == "assistant":
            break
        seen.add(_text(message.get("content")))
    return seen


def _text(value: Any) -> str:
    """Return ``value`` as a text to look things up in."""
    if isinstance(value, str):
        return value
    return _JSON.encode(value).replace('\\"', '"').replace("\\\\", "\\") if value else ""


_JSON = json.JSONEncoder(ensure_ascii=False)


def _leaves(value: JsonValue, most: int) -> Iterator[tuple[str | None, JsonValue]]:
    """Yield strings, numbers, booleans and nulls with their names; None for the agent's own.

    All there are, or at least the first ``most``.
    """
    rest: list[tuple[str | None, JsonValue]] = [("", value)]
    while rest:
        name, value = rest.pop()
        if isinstance(value, dict):
            for key, inner in reversed([*islice(value.items(), most)]):
                low = key.lower()
                rest.append((None if name is None or low in _OWN else low, inner))
        elif isinstance(value, list | tuple):
            rest.extend([(name, inner) for inner in reversed(value[:most])])
        else:
            yield name, value


def _again(size: int, form: int) -> int:
    """Return how much slower a search in ``size`` characters may be than in many."""
    return 1 if size >= _LINEAR_FROM else 1 + form // 8


def _lower(text: str) -> str:
    """Return ``text`` in lower case, each character where it was; only the İ becomes two."""
    return text.replace("İ", "i").lower()


def _forms(value: JsonValue) -> Forms:
    """Return the ways a value may be written in a text; none if it is not worth looking up."""
    if isinstance(value, str):
        text = value.strip()
        enough = 3 if text.isascii() else 2  # two Chinese characters are a name
        if not enough <= len(text) <= _LONGEST or "\n" in text:
            return ()
        return (text,) if len(text.split()) <= _MOST_WORDS else ()
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if abs(value) >= 10**18:  # a hash or a key, and slow to write in decimals
        return ()
    plain = str(value)
    if sum(c.isdigit() for c in plain) < 3:
        return ()
    return (plain, grouped) if (grouped := f"{value:,}") != plain else (plain,)


def _spread(values: list[Forms]) -> Iterator[Forms]:
    """Yield all values, any first part of them spread over the whole attempt."""
    count = len(values)
    stride = _STRIDE if count % _STRIDE else 1
    for k in range(count):
        yield values[k * stride % count]
