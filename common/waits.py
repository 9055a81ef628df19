"""Units of work that wait for people: listed, decided word by word, and ended when time is up.

What somebody says is weighed against the wait as it was read, and put in only if nobody changed it
since (`decide.lua`); else it is read and weighed again. The word that was missing last sends the
next revision to work, or ends the unit, in that same call: there is no moment in between.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from common.approvals import Approval, Wait, Word
from common.logs import logger
from common.model import explain
from common.queue.connection import Server
from common.queue.keys import LANES, Keys
from common.task import Assignment
from common.words import Conclusion, Outcome, clock, conclusion, weigh, with_approvals

log = logger("approvals")

_TRIES = 1000
"""A failed one means that another's word went in, and a wait takes few: it never comes to this."""
_PAGE = 100
"""Waits read at once; each has a whole task in it."""

EXPIRY = "expiry"
"""Who decides, in the log, when nobody did in time."""


class NoSuchApproval(LookupError):
    """Nothing of that id waits, or is remembered, on this server."""


class Contended(RuntimeError):
    """The wait changed each time before a word could be put in."""


@dataclass(frozen=True)
class Decided:
    """What became of one person's word."""

    wait: Wait
    approval: Approval
    outcome: Outcome
    reason: str
    """What follows from it, or why it was refused."""
    next: Assignment | None = None
    """The revision that this word sent to work."""


@dataclass(frozen=True)
class _Kept:
    """A wait as it is in Redis."""

    wait: Wait
    version: bytes
    over: str
    by: str
    why: str
    at: float

    @property
    def ended(self) -> str:
        """Why no word is taken any more, whatever it is about; empty while some are missing."""
        if self.over == "cancelled":
            why = f": {self.why}" if self.why else ""
            return f"the task was cancelled by {self.by} at {clock(self.at)}{why}"
        return "the task is not in the queue any more" if self.over == "lost" else ""


class Waits:
    """What waits for people in one scene."""

    def __init__(self, server: Server, scene: str, *, ledger_ttl: float = 7 * 86_400.0) -> None:
        """``ledger_ttl``: seconds for which what was decided is remembered here."""
        self.server = server
        self.scene = scene
        self.keys = Keys(scene)
        self._ttl_ms = int(ledger_ttl * 1000)

    # -- looking -----------------------------------------------------------------------------

    async def count(self) -> int:
        """Return how many units wait, those that are over but not ended yet included."""
        return int(await self.server.run("ZCARD", self.keys.waits))

    async def pending(self) -> list[Wait]:
        """Return what waits now, soonest expiry first; without what this release cannot read."""
        members = await self.server.run("ZRANGE", self.keys.waits, 0, -1)
        found: list[Wait] = []
        for at in range(0, len(members), _PAGE):
            page = (self._legible(member.decode()) for member in members[at : at + _PAGE])
            found += [kept.wait for kept in await asyncio.gather(*page) if kept and not kept.over]
        return found

    async def find(self, approval_id: str) -> tuple[Wait, Approval] | None:
        """Return an approval and the wait it belongs to, decided ones too while remembered.

        Raises `NoSuchApproval` for one that this release cannot read.
        """
        found = await self._find(approval_id)
        return None if found is None else (found[0].wait, found[1])

    async def _find(self, approval_id: str) -> tuple[_Kept, Approval] | None:
        member = await self.server.run("GET", self.keys.approval(approval_id))
        try:
            kept = await self._read(member.decode()) if member is not None else None
        except ValidationError as error:
            raise NoSuchApproval(
                f"approval {approval_id} was written by another release, which alone can read it: "
                f"{_why(error)}"
            ) from None
        if kept is None:
            return None
        # Of another life of the task, which asked something else, when it is not among them.
        return next(((kept, a) for a in kept.wait.approvals if a.approval_id == approval_id), None)

    async def _read(self, member: str) -> _Kept | None:
        row = await self.server.run(
            "HMGET", self.keys.wait(member), "wait", "v", "over", "by", "why", "at"
        )
        return None if row[0] is None else _kept(row)

    async def _legible(self, member: str) -> _Kept | None:
        """Read a wait; one of another release is left to that, and costs no other."""
        try:
            return await self._read(member)
        except ValidationError as error:
            unit, _, task_id = member.partition("|")
            log.warning(
                "wait.unreadable", scene=self.scene, task_id=task_id, unit=unit, error=_why(error)
            )
            return None

    # -- deciding ----------------------------------------------------------------------------

    async def decide(self, approval_id: str, word: Word) -> Decided:
        """Put in what a person says, and go on if it was the last that was missing.

        Harmless to repeat. Raises `NoSuchApproval`.
        """
        for _ in range(_TRIES):
            found = await self._find(approval_id)
            if found is None:
                raise NoSuchApproval(f"no approval {approval_id} waits in scene {self.scene}")
            kept, approval = found
            if kept.ended:
                return Decided(kept.wait, approval, "refused", kept.ended)
            weighed = weigh(kept.wait, approval, word)
            outcome, after = weighed.outcome, weighed.approval
            if outcome in ("already", "refused"):
                return Decided(kept.wait, approval, outcome, weighed.reason)
            wait = with_approvals(kept.wait, after)
            then = conclusion(wait)
            said = after.words[-1]
            record = _record(
                wait, after, then, by=said.by, at=said.at, said=said.said, why=said.why
            )
            if await self._put(kept, wait, then, [said.said, record]):
                reason = weighed.reason if outcome == "counted" else then.reason
                return Decided(wait, after, outcome, reason, then.next)
        raise Contended(f"approval {approval_id} changed {_TRIES} times while a word was put in")

    async def expire(self, now: float) -> list[Wait]:
        """End what has waited until ``now`` (Unix seconds); return those ended by this call.

        What is still open is refused. The unit goes on with what was decided, or is rejected.
        What cannot be ended now is left to the next call.
        """
        members = await self.server.run(
            "ZRANGE", self.keys.waits, "-inf", int(now * 1000), "BYSCORE"
        )
        ended = [await self._expire(member.decode(), now) for member in members]
        return [wait for wait in ended if wait is not None]

    async def _expire(self, member: str, now: float) -> Wait | None:
        for _ in range(_TRIES):
            kept = await self._legible(member)
            if kept is None or kept.over or kept.wait.expires_at > now:
                return None
            late = [a.model_copy(update={"state": "expired"}) for a in kept.wait.pending]
            wait = with_approvals(kept.wait, *late)
            then = conclusion(wait)
            said: list[Any] = []
            for one in late:
                said += ["expire", _record(wait, one, then, by=EXPIRY, at=now, said="expire")]
            if await self._put(kept, wait, then, said):
                return wait
        log.warning("wait.contended", scene=self.scene, wait=member, tries=_TRIES)
        return None

    async def _put(self, kept: _Kept, wait: Wait, then: Conclusion, said: list[Any]) -> bool:
        """Put a changed wait in, with all that follows. False: it changed meanwhile."""
        verb: list[Any] = ["hold", "", "", ""]
        if then.then == "rejected":
            verb = ["end", "rejected", "", ""]
        elif then.next is not None:
            lane = LANES.index(then.next.task.lane) + 1
            verb = ["next", lane, then.next.encode(), then.next.unit]
        reply = await self.server.fcall(
            "decide",
            (self.keys.prefix, *self.keys.lanes),
            (
                self._ttl_ms, wait.task_id, wait.unit, kept.version, secrets.token_hex(8),
                wait.model_dump_json(exclude_defaults=True), *verb, *said,
            ),
        )  # fmt: skip
        return bool(reply[0] == 1)


def _why(error: ValidationError) -> str:
    field, why = explain(error)[0]
    return f"{field}: {why}"[:200]


def _kept(row: list[bytes | None]) -> _Kept:
    found, version, over, by, why, at = (value or b"" for value in row)
    wait = Wait.model_validate_json(found)
    if over in (b"cancelled", b"lost"):
        open_ = [a.model_copy(update={"state": "cancelled"}) for a in wait.pending]
        wait = with_approvals(wait, *open_)
    return _Kept(
        wait, version, over.decode(), by.decode(errors="replace"), why.decode(errors="replace"),
        float(at or 0) / 1000,
    )  # fmt: skip


def _record(
    wait: Wait,
    approval: Approval,
    then: Conclusion,
    *,
    by: str,
    at: float,
    said: str,
    why: str = "",
) -> bytes:
    """Return a line for the log of decisions."""
    proposal = approval.proposal
    return to_json(
        {
            "at": at, "by": by, "approval_id": approval.approval_id,
            "attempt_id": wait.attempt_id, "field": proposal.field, "from": proposal.before,
            "to": approval.value if approval.state == "chosen" else proposal.after,
            "level": proposal.level, "said": said, "why": why, "state": approval.state,
            "then": then.then,
            "next_unit": then.next.unit if then.next is not None else None,
            "reason": then.reason,
        }
    )  # fmt: skip
