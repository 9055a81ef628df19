"""What the reviewer says about one attempt, and what follows from it."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, JsonValue

from common.model import Contract
from common.task import Change


class Signal(Contract):
    """One deterministic measurement that fed the score."""

    name: str
    value: float
    weight: float = Field(ge=0)
    points: float = Field(ge=0, le=1)
    """1 is best."""
    steps: tuple[int, ...] = ()
    """Step ids that show it."""


class Proposal(Contract):
    """A change the reviewer suggests; the level comes from a table over the field."""

    field: str
    before: JsonValue = Field(default=None, alias="from")
    after: JsonValue = Field(default=None, alias="to")
    reason: str
    evidence: tuple[int, ...] = ()
    """Step ids."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)


class Review(Contract):
    """A decision about one attempt. Its file beside the attempt makes it visible to exporters."""

    format_version: Literal[1] = 1
    task_id: str
    attempt_id: str
    revision: int
    sample: int
    passed: bool | None
    """The verdict it rests on."""
    score: int | None = Field(default=None, ge=0, le=100)
    """At most 49 when a check failed, at least 50 when all passed; null when unverified."""
    decision: Literal["accepted", "iterate", "rejected", "human"]
    reason: str
    signals: tuple[Signal, ...] = ()
    proposals: tuple[Proposal, ...] = ()
    changes: tuple[Change, ...] = ()
    """Applied to the next revision."""
    rubric: str
    """Name and version of the rubric."""
    reviewed_at: float
    """Unix time, seconds."""
    reviewer: str
