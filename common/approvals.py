"""What waits for a person's word: durable, bound to its revision, decided once.

A review that needs people leaves one *wait* per unit of work (`settle` with `waiting`); it holds
one *approval* per proposal. Whoever gives the last word that is missing sends the next revision
to work, or ends the unit, in the same call (`decide.lua`). A word given twice changes nothing; one
that comes too late is refused with what was decided.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field, JsonValue

from common.model import Contract
from common.review import Proposal
from common.task import Assignment, Change, RevisionScore

State = Literal["pending", "chosen", "approved", "rejected", "expired", "cancelled"]


class Word(Contract):
    """What one person said."""

    by: str
    at: float
    """Unix time, seconds."""
    said: Literal["choose", "approve", "reject"]
    value: JsonValue = None
    """What was chosen."""
    why: str = ""


class Approval(Contract):
    """One proposal that a person decides on."""

    approval_id: str
    proposal: Proposal
    """Its `level` is yellow or red."""
    impact: str
    """What it means for the data, the cost or the safety of the run."""
    people: int = Field(default=1, ge=1, le=5)
    """Different people who must approve it."""
    options: tuple[JsonValue, ...] = ()
    """Yellow: what to choose among, two or more; the value it has now is one of them."""
    editable: bool = False
    """Yellow: may a person write a value of his own?"""
    state: State = "pending"
    value: JsonValue = None
    """What the field becomes, once chosen or approved."""
    words: tuple[Word, ...] = ()

    @property
    def pending(self) -> bool:
        return self.state == "pending"


class Wait(Contract):
    """One unit of work that waits for people."""

    scene: str
    task_id: str
    unit: str
    """As it ran, e.g. `r1-s0`."""
    attempt_id: str
    before: Assignment
    """As it ran. The next revision is this one with the changes in."""
    history: tuple[RevisionScore, ...]
    """Of the next revision: what all so far came to."""
    greens: tuple[Change, ...] = ()
    """Applied together with what people decide."""
    approvals: tuple[Approval, ...]
    reason: str
    """Why it did not succeed, as the review says it."""
    asked_at: float
    expires_at: float
    """Unix time, seconds. What is pending then is refused, and the unit goes on without it."""

    @property
    def pending(self) -> tuple[Approval, ...]:
        return tuple(a for a in self.approvals if a.pending)


def refusal_key(field: str, after: JsonValue) -> str:
    """Name a change by what it would make of a field: the same for the same JSON.

    16 hex digits; what people refuse is kept by it (`Assignment.refused`), and not asked again.
    """
    told = json.dumps([field, _plain(after)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    """Return a JSON value with one spelling for each number: 1.0 is 1."""
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
