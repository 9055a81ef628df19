"""Reads a judge's answer as a vote, or says why it is none. Never a default, never a guess.

What counts is a call of `grade`, or an answer that is one JSON object from its first character to
its last: a judge that quotes the record does not vote what the record says.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from common.llm.parse import read_arguments
from common.llm.types import ModelReply
from common.review import Vote
from reviewer.judge.windows import Window

VOTING = 2
"""Raised with every change of what counts as a vote: no calibration holds across two."""

GRADE: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "grade",
        "description": "Give the grade for the one criterion.",
        "parameters": {
            "type": "object",
            "properties": {
                "reason": {"type": "string", "description": "Why, by what the record shows."},
                "evidence": {
                    "type": "array",
                    "items": {"type": "integer"},
                    "description": (
                        "Numbers of the steps it rests on. A score of 3 or more needs at least "
                        "one that you were shown, unless the record has no step."
                    ),
                },
                "score": {
                    "type": ["integer", "null"],
                    "description": "The level, 1 to 5; null if unknown.",
                },
                "unknown": {
                    "type": "boolean",
                    "description": "True if the record does not show enough to choose a level.",
                },
            },
            "required": ["reason", "evidence", "score", "unknown"],
            "additionalProperties": False,
        },
    },
}

_NAME = str(GRADE["function"]["name"])
_LONGEST = 2000  # characters of a reason that are kept
_SHOWN = 3
"""The score from which on a step has to show it: that nothing was done, no step shows."""
_FENCE = re.compile(r"\s*```(?:json)?[ \t]*\n(.*)\n[ \t]*```\s*", re.S)
_ENVELOPE = {"thought", "tool", "name", "arguments"}


class NoVote(Exception):
    """The answer does not count; ``str()`` says why."""


def read(reply: ModelReply, window: Window, *, number: int) -> Vote:
    """Return what the answer to a question about ``window`` in round ``number`` comes to."""
    place = {"round": number, "window": window.number}
    try:
        said = _said(reply)
        score = _score(said)
        needed = score is not None and score >= _SHOWN
        evidence = _evidence(said, window, needed=needed)
        return Vote(**place, score=score, reason=_reason(said), evidence=evidence)
    except NoVote as why:
        return Vote(**place, invalid=str(why))


def _said(reply: ModelReply) -> dict[str, Any]:
    """Return the arguments of the one `grade`, called or written as the whole answer."""
    if reply.parse == "native" and reply.calls:
        return _called(reply)
    # Calls that were found in a text are not looked at: the text may quote them.
    fence = _FENCE.fullmatch(reply.text)
    text = (fence[1] if fence else reply.text).strip()
    if not text.startswith("{"):
        raise NoVote(f"no call of {_NAME}")
    said = _object(text)
    if "arguments" not in said:
        return said
    inner = said["arguments"]
    if said.get("tool", said.get("name")) != _NAME:
        raise NoVote(f"a call of another tool than {_NAME}")
    if not isinstance(inner, dict) or not said.keys() <= _ENVELOPE:
        raise NoVote(f"not one call of {_NAME}")
    return inner


def _called(reply: ModelReply) -> dict[str, Any]:
    if len(reply.calls) > 1:
        raise NoVote(f"{len(reply.calls)} calls instead of one")
    call = reply.calls[0]
    if call.error is not None:
        raise NoVote(f"unreadable: {call.error}"[:500])
    if call.tool != _NAME:
        raise NoVote(f"a call of another tool than {_NAME}")
    return _object(call.raw_arguments) if call.arguments else {}


def _object(text: str) -> dict[str, Any]:
    """Return the one JSON object that ``text`` is, in which each key stands once."""
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_reject)
    except (ValueError, RecursionError) as error:
        raise NoVote(f"unreadable: {error}"[:500]) from None
    said, reason = read_arguments(found if isinstance(found, dict) else [])
    if reason is not None:
        raise NoVote(f"unreadable: {reason}"[:500])
    return said


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    said = dict(pairs)
    if len(said) < len(pairs):
        raise ValueError("a key stands in it twice")
    return said


def _reject(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _score(said: dict[str, Any]) -> int | None:
    """Return the score, None for unknown."""
    score, unknown = said.get("score"), said.get("unknown", False)
    if type(unknown) is not bool:
        raise NoVote("unknown is neither true nor false")
    if score is None:
        if not unknown:
            raise NoVote("neither a score nor unknown")
        return None
    if unknown:
        raise NoVote("both unknown and a score")
    if type(score) is not int or not 1 <= score <= 5:  # True is an int, and 4.0 is equal to one
        raise NoVote("the score is not an integer from 1 to 5")
    return score


def _reason(said: dict[str, Any]) -> str:
    reason = said.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise NoVote("no reason")
    reason = reason.strip()
    return reason if len(reason) <= _LONGEST else reason[: _LONGEST - 1] + "…"


def _evidence(said: dict[str, Any], window: Window, *, needed: bool) -> tuple[int, ...]:
    listed = said.get("evidence")
    if listed is None:
        listed = []
    if not isinstance(listed, list) or any(type(one) is not int for one in listed):
        raise NoVote("the evidence is not a list of step numbers")
    cited = tuple(dict.fromkeys(listed))
    if missing := [one for one in cited if one not in window.steps]:
        raise NoVote(f"it cites steps that do not exist: {', '.join(map(str, missing[:5]))}"[:500])
    if needed and window.shown and not window.shown.intersection(cited):
        raise NoVote("it cites no step that it was shown")
    return cited
