"""Grounding: whether the values an agent passed to its tools come from anywhere it could know.

A name, path, id or number that neither the task nor any earlier result holds was made up, or
guessed. Prose and programs are the agent's own and are not looked up; nor are the settings of a
call, such as a time limit or where on a screen to tap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import JsonValue

from common.trajectory import Trajectory

_PROSE = {
    "answer", "body", "cmd", "code", "command", "comment", "content", "contents", "data",
    "description", "diff", "explanation", "expression", "file_content", "html", "input",
    "input_text", "instruction", "instructions", "message", "new_str", "note", "notes",
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
Forms = tuple[str, ...]
"""The ways one value may be written."""
_LONGEST = 200
"""Characters of a string that is still looked up."""
_MOST_WORDS = 8
"""Of a string that is no sentence."""
_MOST_SCANNED = 32 << 20
"""Characters searched for one attempt, about 15 ms. Only attempts of hundreds of steps with
long results and many values that occur nowhere need more; of theirs, an even sample counts."""
_STRIDE = 7919
"""A prime: every so many values modulo their number gives an even sample of them."""


class _Seen:
    """The texts an agent has come across, oldest first, searched from the newest."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._lowered: dict[int, str] = {}
        self.scanned = 0

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> None:
        if text:
            self._texts.append(text)

    def has(self, forms: Forms, among: int) -> bool:
        """Whether one of ``forms`` occurs in the first ``among`` texts, in upper or lower case."""
        if any(self._find(form, among, self._texts.__getitem__) for form in forms):
            return True
        lower = forms[0].lower()
        return lower != lower.upper() and self._find(lower, among, self._lower)

    def _find(self, form: str, among: int, text_of: Callable[[int], str]) -> bool:
        for index in range(among - 1, -1, -1):
            text = text_of(index)
            self.scanned += len(text)
            if _occurs(form, text):
                return True
        return False

    def _lower(self, index: int) -> str:
        """Return a text in lower case; most values are found as they are, and need none."""
        text = self._lowered.get(index)
        if text is None:
            text = self._lowered[index] = self._texts[index].lower()
        return text


def grounded(trajectory: Trajectory) -> tuple[float, list[int]] | None:
    """Return the share of values that come from somewhere, and the steps that used others first.

    Each value counts once, where it is first used. None where there is nothing to look up.
    """
    seen = _given(trajectory)
    first: dict[Forms, tuple[int, int]] = {}  # forms → step id, texts seen before it
    for step in trajectory.steps:
        for name, value in _leaves(step.action.arguments):
            if name is not None and (forms := _forms(value)):
                first.setdefault(forms, (step.step_id, len(seen)))
        seen.add(step.observation.text)
        seen.add(_text(step.action.arguments))  # it wrote that file itself
    values = list(first)
    looked_up, unfounded = 0, []
    for forms in _spread(values):
        step_id, among = first[forms]
        looked_up += 1
        if not seen.has(forms, among):
            unfounded.append(step_id)
        if seen.scanned > _MOST_SCANNED:
            break
    if not looked_up:
        return None
    return 1 - len(unfounded) / looked_up, sorted(set(unfounded))


def _given(trajectory: Trajectory) -> _Seen:
    """Return what the agent knows before its first step."""
    seen = _Seen()
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
    """Return all that can be looked up in ``value``, a line each."""
    return "\n".join(str(v) for _, v in _leaves(value) if isinstance(v, str) or _forms(v))


def _leaves(value: JsonValue, name: str | None = "") -> Iterator[tuple[str | None, JsonValue]]:
    """Yield every string, number, boolean and null with its name; None for the agent's own."""
    if isinstance(value, dict):
        for key, inner in value.items():
            own = name is None or key.lower() in _OWN
            yield from _leaves(inner, None if own else key)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, name)
    else:
        yield name, value


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


def _occurs(form: str, text: str) -> bool:
    """Whether ``form`` is in ``text``; digits at its ends must not be part of a longer number."""
    at = text.find(form)
    while at >= 0:
        end = at + len(form)
        inside = (form[0].isdecimal() and text[max(at - 1, 0) : at].isdecimal()) or (
            form[-1].isdecimal() and text[end : end + 1].isdecimal()
        )
        if not inside:
            return True
        at = text.find(form, at + 1)
    return False


def _spread(values: list[Forms]) -> Iterator[Forms]:
    """Yield all values, any first part of them spread over the whole attempt."""
    count = len(values)
    stride = _STRIDE if count % _STRIDE else 1
    for k in range(count):
        yield values[k * stride % count]
