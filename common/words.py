"""What one person's word does to an approval, and what follows once nothing is open. No I/O.

Yellow: one person chooses among the options, or writes a value where that is allowed; the value
the field has now means "keep it". Red: as many different people as it takes approve. One rejection
is enough for either, and refuses that proposal only. What nobody wanted is not asked again in the
revisions that follow.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import JsonValue

from common.approvals import Approval, State, Wait, Word, refusal_key
from common.revision import CannotApply, apply, revised, same, value_of
from common.task import Assignment, Change

Outcome = Literal["counted", "decided", "already", "refused"]
"""`counted`: others must agree too; `already`: nothing changed, for it had been said before."""
_STATE: dict[str, State] = {"choose": "chosen", "approve": "approved", "reject": "rejected"}


@dataclass(frozen=True)
class Weighed:
    """What becomes of a word, before it is put in."""

    outcome: Outcome
    reason: str
    approval: Approval
    """With the word in it, where it counts."""


@dataclass(frozen=True)
class Conclusion:
    """What follows from all that was said so far."""

    then: Literal["waits", "next", "rejected"]
    reason: str
    next: Assignment | None = None


def weigh(wait: Wait, approval: Approval, word: Word) -> Weighed:
    """Say what ``word`` does to ``approval`` of ``wait``."""
    word = _read(wait, approval, word)
    if not approval.pending:
        return _too_late(wait, approval, word)
    if any(person(w.by) == person(word.by) and _equal(w, word) for w in approval.words):
        return Weighed("already", f"{word.by} has said so; {_missing(approval)}", approval)
    objection = _objection(wait, approval, word)
    if objection is not None:
        return Weighed("refused", objection, approval)
    after = _with_word(approval, word)
    if after.pending:
        return Weighed("counted", _missing(after), after)
    return Weighed("decided", told(after), after)


def conclusion(wait: Wait) -> Conclusion:
    """Say how the unit goes on: it waits, the next revision, or its end."""
    if wait.pending:
        ids = ", ".join(a.approval_id for a in wait.pending)
        return Conclusion("waits", f"it still waits for a decision on {ids}")
    changes = _changes(wait)
    if not changes:
        return Conclusion("rejected", "no change is left to try; the unit is rejected")
    try:
        following = revised(wait.before, changes, wait.history)
    except CannotApply as error:
        return Conclusion("rejected", f"it cannot be applied: {error}; the unit is rejected")
    refused = tuple(dict.fromkeys((*wait.before.refused, *_unwanted(wait))))
    following = following.model_copy(update={"refused": refused})
    return Conclusion("next", f"revision {following.revision} is queued", following)


def with_approvals(wait: Wait, *approvals: Approval) -> Wait:
    """Return the wait with ``approvals`` in the place of those of the same id."""
    by_id = {approval.approval_id: approval for approval in approvals}
    every = tuple(by_id.get(a.approval_id, a) for a in wait.approvals)
    return wait.model_copy(update={"approvals": every})


def told(approval: Approval) -> str:
    """Say how it was decided, by whom and when."""
    said = deciding(approval)
    if not said:
        return f"{approval.approval_id} is {approval.state}"
    people = " and ".join(w.by for w in said)
    return f"{approval.approval_id} was {approval.state} by {people} at {clock(said[-1].at)}"


def deciding(approval: Approval) -> tuple[Word, ...]:
    """Return the words that decided it; none of one that is open, or that nobody decided."""
    return tuple(word for word in approval.words if _STATE[word.said] == approval.state)


def approving(words: tuple[Word, ...]) -> int:
    """Return how many different people approve."""
    return len({person(word.by) for word in words if word.said == "approve"})


def value_now(wait: Wait, approval: Approval) -> JsonValue:
    """Return what the field is in the revision that waits."""
    try:
        return value_of(wait.before, approval.proposal.field)
    except CannotApply:
        return approval.proposal.before


def person(by: str) -> str:
    """Say who somebody is: the same for all spellings of a name, and wherever it was said.

    `root@one` and `Root@other` are one person, for a user name says nothing about the host. Empty
    for what names nobody.
    """
    name, _, _ = unicodedata.normalize("NFKC", by).partition("@")
    return " ".join(name.casefold().split())


def clock(at: float) -> str:
    """Say a time (Unix, seconds) as people and logs do."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _read(wait: Wait, approval: Approval, word: Word) -> Word:
    """Return the word as it is kept: an option as it was offered, texts that can be stored."""
    value = None
    if word.said == "choose":
        value = next((o for o in _choices(wait, approval) if same(o, word.value)), word.value)
    texts = {"by": _storable(word.by), "why": _storable(word.why)}
    return word.model_copy(update={"value": value, **texts})


def _storable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _too_late(wait: Wait, approval: Approval, word: Word) -> Weighed:
    if approval.state == "expired":
        return Weighed("refused", _until(wait), approval)
    agrees = _STATE[word.said] == approval.state
    if agrees and (word.said != "choose" or same(word.value, approval.value)):
        return Weighed("already", told(approval), approval)
    return Weighed("refused", told(approval), approval)


def _until(wait: Wait) -> str:
    return f"it was to be decided until {clock(wait.expires_at)}"


def _objection(wait: Wait, approval: Approval, word: Word) -> str | None:
    """Why a word cannot count; None when it can."""
    yellow = approval.proposal.level == "yellow"
    if not person(word.by):
        return "a word without a name counts for nobody"
    if word.at >= wait.expires_at:
        return _until(wait)
    if word.said == "reject":
        return None
    if word.said != ("choose" if yellow else "approve"):
        fitting = "yellow: choose" if yellow else "red: approve"
        return f"this one is {fitting} or reject it"
    if yellow and not any(same(word.value, option) for option in _choices(wait, approval)):
        if not approval.editable:
            return "that is none of its options, and it may not be edited"
        if word.value is None:
            return "choose needs a value"
    try:
        apply(wait.before, _changes(with_approvals(wait, _with_word(approval, word))))
    except CannotApply as error:
        return str(error)
    return None


def _with_word(approval: Approval, word: Word) -> Approval:
    words = (*approval.words, word)
    state, value = _STATE[word.said], None
    if state == "chosen":
        value = word.value
    elif state == "approved":
        value = approval.proposal.after
        if approving(words) < approval.people:
            state, value = "pending", None
    return approval.model_copy(update={"words": words, "state": state, "value": value})


def _changes(wait: Wait) -> list[Change]:
    """Return what is to be applied: what needed nobody's word, and what people agreed to."""
    changes = list(wait.greens)
    for approval in wait.approvals:
        if approval.state not in ("chosen", "approved") or _keeps(wait, approval):
            continue
        proposal = approval.proposal
        changes.append(
            Change(
                field=proposal.field, before=proposal.before, after=approval.value,
                reason=proposal.reason, level="yellow" if approval.state == "chosen" else "red",
                by=tuple(word.by for word in deciding(approval)),
                approval=approval.approval_id,
            )
        )  # fmt: skip
    return changes


def _keeps(wait: Wait, approval: Approval) -> bool:
    """Was it decided that the field stays what it is?"""
    decided = approval.state in ("chosen", "approved")
    return decided and same(approval.value, value_now(wait, approval))


def _unwanted(wait: Wait) -> list[str]:
    """Return the keys of what was proposed, and rejected, not wanted in time, or not chosen."""
    return [
        refusal_key(approval.proposal.field, approval.proposal.after)
        for approval in wait.approvals
        if approval.state in ("rejected", "expired")
        or not same(approval.value, approval.proposal.after)
    ]


def _choices(wait: Wait, approval: Approval) -> list[JsonValue]:
    return [*approval.options, value_now(wait, approval)]


def _missing(approval: Approval) -> str:
    people = approval.people - approving(approval.words)
    return f"{people} more {'person' if people == 1 else 'people'} must approve"


def _equal(one: Word, other: Word) -> bool:
    return one.said == other.said and same(one.value, other.value)
