"""The approvals over HTTP: listed, looked at, decided. One router, for whatever serves it.

Who speaks is what `who` reads from the request's token, never what its body says. A word that is
repeated is answered as the first time (`already`), so clients may repeat what got no answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Literal, Self

from fastapi import APIRouter, Depends, HTTPException, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field, JsonValue, field_validator, model_validator

from common.approvals import Word
from common.model import Contract
from common.task import SceneName
from common.waits import Decided
from common.words import Outcome, deciding
from console.desk import Desk, Found, Unfit, Unknown
from console.shown import Detail, Item, what_follows

Desks = Callable[[], AbstractAsyncContextManager[Desk]]
"""Leads to the desk of the queue server there is now, for one request."""


class Said(Contract):
    """The body of a word."""

    why: str = Field(default="", max_length=4000)
    """The reason, for the audit."""


class Choice(Said):
    """Which value a yellow one gets: one of its options, or one of the person's own."""

    option: int | None = Field(default=None, ge=1, strict=True)
    """Of its options, counted from 1."""
    value: JsonValue = None

    @field_validator("value")
    @classmethod
    def _numbers(cls, value: JsonValue) -> JsonValue:
        if not _finite(value):
            raise ValueError("NaN and infinity are no JSON numbers")
        return value

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.option is not None) == ("value" in self.model_fields_set):
            raise ValueError("give either option or value")
        return self


def _finite(value: JsonValue) -> bool:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, float) and not math.isfinite(one):
            return False
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
    return True


class Answer(Contract):
    """What became of a word."""

    outcome: Outcome
    then: str
    """What follows, in a sentence."""
    next_unit: str | None
    """The unit of work that this word queued."""
    approval: Item


def router(desks: Desks, who: Callable[[Request], str]) -> APIRouter:
    """Return the routes below /api/approvals; ``who`` names whoever asks."""
    routes = APIRouter(prefix="/api/approvals")

    async def open_desk() -> AsyncIterator[Desk]:
        async with desks() as desk:
            yield desk

    opened = Depends(open_desk, scope="function")

    @routes.get("")
    async def listed(
        scene: SceneName | None = None,
        level: Annotated[Literal["yellow", "red"] | None, Query()] = None,
        desk: Desk = opened,
    ) -> list[Item]:
        found = await desk.pending(scene and scene.value, level)
        return [Item.of(one) for one in found]

    @routes.get("/{approval_id}")
    async def shown(approval_id: str, desk: Desk = opened) -> Detail:
        return Detail.of(await _get(desk, approval_id))

    @routes.post("/{approval_id}/choose", response_model=Answer)
    async def choose(
        approval_id: str, body: Choice, by: str = Depends(who), desk: Desk = opened
    ) -> JSONResponse:
        found = await _get(desk, approval_id)
        value, options = body.value, found.approval.options
        if body.option is not None:
            if body.option > len(options):
                raise HTTPException(422, {
                    "error": f"there is no option {body.option}", "field": "option",
                    "reason": f"it has {len(options)} options",
                })  # fmt: skip
            value = options[body.option - 1]
        return await _say(desk, found, _word(by, "choose", body, value))

    @routes.post("/{approval_id}/approve", response_model=Answer)
    async def approve(
        approval_id: str, body: Said, by: str = Depends(who), desk: Desk = opened
    ) -> JSONResponse:
        return await _say(desk, await _get(desk, approval_id), _word(by, "approve", body))

    @routes.post("/{approval_id}/reject", response_model=Answer)
    async def reject(
        approval_id: str, body: Said, by: str = Depends(who), desk: Desk = opened
    ) -> JSONResponse:
        return await _say(desk, await _get(desk, approval_id), _word(by, "reject", body))

    return routes


async def _get(desk: Desk, approval_id: str) -> Found:
    try:
        return await desk.get(approval_id)
    except Unknown as error:
        raise HTTPException(404, {"error": str(error)}) from None


def _word(
    by: str, said: Literal["choose", "approve", "reject"], body: Said, value: JsonValue = None
) -> Word:
    return Word(by=by, at=time.time(), said=said, value=value, why=body.why)


async def _say(desk: Desk, found: Found, word: Word) -> JSONResponse:
    try:
        decided = await desk.say(found, word, via="http")
    except Unknown as error:
        raise HTTPException(404, {"error": str(error)}) from None
    except Unfit as error:
        raise HTTPException(422, _wrong(found, str(error))) from None
    if decided.outcome == "refused":
        raise _refusal(decided, word)
    answer = Answer(
        outcome=decided.outcome,
        then=what_follows(decided),
        next_unit=decided.next.unit if decided.next else None,
        approval=Item.of(Found(decided.wait, decided.approval)),
    )
    return JSONResponse(answer.model_dump(mode="json"))


def _refusal(decided: Decided, word: Word) -> HTTPException:
    """Say why a word was refused: 409 decided otherwise, 410 too late, 422 it cannot be applied."""
    found = Found(decided.wait, decided.approval)
    state = found.approval.state
    late = found.approval.pending and word.at >= found.wait.expires_at
    if state in ("expired", "cancelled") or late:
        return HTTPException(410, {"error": decided.reason, "state": state})
    if found.approval.pending:
        return HTTPException(422, _wrong(found, decided.reason))
    *_, last = deciding(found.approval)
    return HTTPException(409, {
        "error": decided.reason, "state": state, "value": found.approval.value,
        "by": last.by, "at": last.at,
    })  # fmt: skip


def _wrong(found: Found, reason: str) -> dict[str, JsonValue]:
    return {"error": reason, "field": found.approval.proposal.field, "reason": reason}
