"""Reads a judge's answer as a vote, or says why it is none. Never a default, never a guess."""

from __future__ import annotations

import re
from typing import Any

from common.llm.parse import read_arguments
from common.llm.types import ModelReply
from common.review import Vote
from reviewer.judge.prompt import GRADE
from reviewer.judge.windows import Window

_NAME = str(GRADE["function"]["name"])
_LONGEST = 2000  # characters of a reason that are kept
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.S)


class NoVote(Exception):
    """The answer does not count; ``str()`` says why."""


def read(reply: ModelReply, window: Window, *, number: int) -> Vote:
    """Return what the answer to a question about ``window`` in round ``number`` comes to."""
    place = {"round": number, "window": window.number}
    try:
        said = _said(reply)
        score = _score(said)
        evidence = _evidence(said, window, needed=score is not None)
        return Vote(**place, score=score, reason=_reason(said), evidence=evidence)
    except NoVote as why:
        return Vote(**place, invalid=str(why))


def _said(reply: ModelReply) -> dict[str, Any]:
    """Return the arguments of the one `grade`, called or written as a JSON object."""
    if len(reply.calls) > 1:
        raise NoVote(f"{len(reply.calls)} calls instead of one")
    if reply.calls:
        call = reply.calls[0]
        if call.error is not None:
            raise NoVote(f"unreadable: {call.error}"[:500])
        if call.tool != _NAME:
            raise NoVote(f"a call of another tool than {_NAME}")
        return call.arguments
    fence = _FENCE.fullmatch(reply.text)
    text = (fence[1] if fence else reply.text).strip()
    if not text.startswith("{"):
        raise NoVote(f"no call of {_NAME}")
    said, error = read_arguments(text)
    if error is not None:
        raise NoVote(f"unreadable: {error}"[:500])
    inner = said.get("arguments")
    if said.get("tool", said.get("name")) == _NAME and isinstance(inner, dict):
        return inner
    return said


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
