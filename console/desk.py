"""Where people look at what waits for them, and where their words are taken.

Both doors lead here, the command line and HTTP. A word is written down before it is sent (an
`asked` line of the audit log), then decided in Redis, and what was decided is written down too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from common.approvals import Approval, Wait, Word
from common.audit import AuditLog, latest, read
from common.logs import logger
from common.presence import living
from common.queue.connection import Server, ServerGone
from common.queue.keys import Keys
from common.review import Level
from common.store import StoreError
from common.task import SceneName
from common.waits import Decided, NoSuchApproval, Waits

log = logger("approvals")

Via = Literal["cli", "http"]
_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Unknown(LookupError):
    """No approval has that id, or it was forgotten."""


class Forgotten(Unknown):
    """The server does not know it any more; ``lines`` are what the audit log says of it."""

    def __init__(self, lines: Sequence[dict[str, Any]]) -> None:
        self.lines = lines
        last = lines[-1]
        super().__init__(
            f"{last['approval_id']} was {last['state']}, and the server has forgotten it"
        )


class Ambiguous(LookupError):
    """Several ids begin like that; ``ids`` are these."""

    def __init__(self, begin: str, ids: Iterable[str]) -> None:
        self.ids = sorted(ids)
        super().__init__(f"several approvals begin with {begin!r}: {', '.join(self.ids)}")


class Unfit(ValueError):
    """What was said is no answer to what was asked."""


@dataclass(frozen=True)
class Found:
    """One approval, and the unit of work that waits for it."""

    wait: Wait
    approval: Approval


class Desk:
    """The approvals of all scenes of one server, with the audit log below ``output``."""

    def __init__(self, server: Server, output: Path, *, ledger_ttl: float) -> None:
        self._server = server
        self._output = output
        self._audit = AuditLog(output)
        self._waits = {
            scene.value: Waits(server, scene.value, ledger_ttl=ledger_ttl) for scene in SceneName
        }

    # -- looking -----------------------------------------------------------------------------

    async def pending(self, scene: str | None = None, level: Level | None = None) -> list[Found]:
        """Return what waits for somebody's word, soonest expiry first."""
        asked = [self._waits[scene]] if scene else list(self._waits.values())
        waits = [
            wait for each in await asyncio.gather(*(w.pending() for w in asked)) for wait in each
        ]
        return [
            Found(wait, approval)
            for wait in sorted(waits, key=lambda wait: (wait.expires_at, wait.task_id, wait.unit))
            for approval in wait.pending
            if level in (None, approval.proposal.level)
        ]

    async def get(self, approval_id: str) -> Found:
        """Return an approval, decided ones too while they are remembered. Raises `Unknown`."""
        if _ID.fullmatch(approval_id):
            asked = (waits.find(approval_id) for waits in self._waits.values())
            try:
                every = await asyncio.gather(*asked)
            except NoSuchApproval as error:  # it is there, and of another release
                raise Unknown(str(error)) from None
            for found in every:
                if found is not None:
                    return Found(*found)
        raise Unknown(f"no approval {approval_id!r}: it never was, or it is forgotten by now")

    async def find(self, begin: str) -> Found:
        """Return the approval whose id is ``begin``, or the only one whose id begins like that.

        Raises `Unknown`, `Forgotten` for one that only the audit log knows, `Ambiguous`, or
        `StoreError` when that cannot be read.
        """
        try:
            return await self.get(begin)
        except Unknown:
            if not _ID.fullmatch(begin):
                raise
        waiting = {found.approval.approval_id: found for found in await self.pending()}
        ids = {one for one in waiting if one.startswith(begin)} or {
            one for one in await asyncio.to_thread(self.decided) if one.startswith(begin)
        }
        if len(ids) > 1 and begin not in ids:
            raise Ambiguous(begin, ids)
        chosen = begin if begin in ids or not ids else ids.pop()
        if chosen in waiting:
            return waiting[chosen]
        try:
            return await self.get(chosen)
        except Unknown:
            if lines := await asyncio.to_thread(self._lines, chosen):
                raise Forgotten(lines) from None
            raise

    def decided(self) -> dict[str, dict[str, Any]]:
        """Return what the audit log says of decided approvals, by id, the latest last.

        Raises `StoreError` when it cannot be read.
        """
        return {
            approval_id: line for approval_id, line in latest(self._output).items()
            if line.get("state", "pending") != "pending"
        }  # fmt: skip

    def _lines(self, approval_id: str) -> list[dict[str, Any]]:
        """Return what the audit log says of one approval, if it was decided."""
        lines = [
            line for line in read(self._output)
            if line.get("approval_id") == approval_id and "entry" in line
        ]  # fmt: skip
        return lines if lines and lines[-1].get("state", "pending") != "pending" else []

    async def worked(self, scene: str) -> bool:
        """Is a worker of the scene alive, that could go on with what is decided?"""
        workers = [p.consumer for p in await living(self._server) if p.service == "worker"]
        cards = [Keys(scene).card(consumer) for consumer in workers]
        return bool(cards and await self._server.run("EXISTS", *cards))

    # -- deciding ----------------------------------------------------------------------------

    async def say(self, found: Found, word: Word, *, via: Via) -> Decided:
        """Write a word down, count it, and write down what came of it.

        Harmless to repeat. Raises `Unfit` for a word that is no answer, `Unknown` for an approval
        forgotten meanwhile, `StoreError` when the word cannot be written down: then nothing was
        decided.
        """
        line = _asked(found, word, via)
        await asyncio.to_thread(self._audit.append, line)
        scene = found.wait.scene
        try:
            decided = await self._waits[scene].decide(found.approval.approval_id, word)
        except NoSuchApproval as error:
            raise Unknown(str(error)) from None
        try:
            await self._audit.copy(self._server, [scene])
        except (StoreError, ServerGone) as error:
            # It is decided and on the server; whoever copies next writes it down.
            log.warning("audit.behind", scene=scene, error=str(error)[:500])
        return decided


def _asked(found: Found, word: Word, via: Via) -> dict[str, Any]:
    """Return the line of the audit log for a word that is about to be sent. Raises `Unfit`."""
    approval, wait = found.approval, found.wait
    line = {
        "decision": "asked", "scene": wait.scene, "task_id": wait.task_id, "unit": wait.unit,
        "attempt_id": wait.attempt_id, "approval_id": approval.approval_id,
        "field": approval.proposal.field, **word.model_dump(mode="json"), "via": via,
    }  # fmt: skip
    try:
        orjson.dumps(line)
    except TypeError as error:  # half a surrogate pair, a number beyond 64 bits
        raise Unfit(f"this cannot be written down as JSON: {error}") from None
    return line
