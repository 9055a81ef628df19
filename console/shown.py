"""Approvals as people and programs are shown them: in a list, in full, and what follows."""

from __future__ import annotations

import difflib
from typing import Self

import orjson
from pydantic import ConfigDict, Field, JsonValue

from common.approvals import State, Word
from common.model import Contract
from common.review import Level
from common.task import Change, RevisionScore
from common.waits import Decided
from common.words import approving
from console.desk import Found


class Item(Contract):
    """One approval in a list."""

    approval_id: str
    level: Level
    scene: str
    task_id: str
    unit: str
    """As it ran, e.g. `r1-s0`."""
    attempt_id: str
    revision: int
    """As it ran."""
    field: str
    before: JsonValue = Field(alias="from")
    after: JsonValue = Field(alias="to")
    reason: str
    """Why the change is proposed."""
    impact: str
    state: State
    value: JsonValue
    """What the field becomes, once chosen or approved."""
    people: int
    """Different people who must approve it."""
    approved: int
    """So many have."""
    asked_at: float
    expires_at: float
    """Unix time, seconds."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)

    @classmethod
    def of(cls, found: Found) -> Self:
        return cls.model_validate(_item(found))


class Detail(Item):
    """One approval with all a person needs to decide."""

    by: str
    """`rules`, or the name of the model that suggests it."""
    evidence: tuple[int, ...]
    """Step ids of the attempt."""
    options: tuple[JsonValue, ...]
    """What to choose among; `option` counts them from 1."""
    editable: bool
    diff: tuple[str, ...]
    """From what it is to what is proposed."""
    words: tuple[Word, ...]
    """What people said so far."""
    failed_because: str
    """Why the attempt did not succeed, as its review says it."""
    history: tuple[RevisionScore, ...]
    """What the revisions so far came to."""
    greens: tuple[Change, ...]
    """Changes that need nobody, applied together with what people decide."""
    others: tuple[Item, ...]
    """What else is asked about the same unit of work."""

    @classmethod
    def of(cls, found: Found) -> Self:
        wait, approval = found.wait, found.approval
        proposal = approval.proposal
        return cls.model_validate({
            **_item(found), "by": proposal.by, "evidence": proposal.evidence,
            "options": approval.options, "editable": approval.editable,
            "diff": difference(proposal.before, proposal.after), "words": approval.words,
            "failed_because": wait.reason, "history": wait.history, "greens": wait.greens,
            "others": [Item.of(Found(wait, a)) for a in wait.approvals if a != approval],
        })  # fmt: skip


def _item(found: Found) -> dict[str, object]:
    wait, approval = found.wait, found.approval
    proposal = approval.proposal
    return {
        "approval_id": approval.approval_id, "level": proposal.level or "red",
        "scene": wait.scene, "task_id": wait.task_id, "unit": wait.unit,
        "attempt_id": wait.attempt_id, "revision": wait.before.revision, "field": proposal.field,
        "from": proposal.before, "to": proposal.after, "reason": proposal.reason,
        "impact": approval.impact, "state": approval.state, "value": approval.value,
        "people": approval.people, "approved": approving(approval.words),
        "asked_at": wait.asked_at, "expires_at": wait.expires_at,
    }  # fmt: skip


def text_of(value: JsonValue) -> str:
    """Return a value as people read it: text as it is, nothing for what is absent, else JSON."""
    if value is None or isinstance(value, str):
        return value or ""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _json(value: JsonValue) -> str:
    return orjson.dumps(value).decode()


def difference(before: JsonValue, after: JsonValue) -> tuple[str, ...]:
    """Return what changes, line by line: ` ` stays, `-` goes, `+` comes."""
    one, other = text_of(before).splitlines(), text_of(after).splitlines()
    if one == other and before != after:  # white space at the end, or nothing instead of absent
        return (f"-{_json(before)}", f"+{_json(after)}")
    return tuple(difflib.unified_diff(one, other, lineterm="", n=3))[2:]  # without file names


def what_follows(decided: Decided) -> str:
    """Say in a sentence what comes of a word."""
    if decided.next is not None:
        return f"revision {decided.next.revision} is queued"
    if not decided.approval.pending and (others := decided.wait.pending):
        ids = ", ".join(approval.approval_id for approval in others)
        return f"the task waits for {len(others)} more: {ids}"
    return decided.reason
