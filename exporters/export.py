"""One streaming pass: read → select → project → write. Constant memory; repeatable to the byte."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from common.failures import FailureClass
from common.review import Review
from common.store import Reviewed, Store, StoreError
from common.trajectory import Trajectory
from exporters.messages import NotExportable
from exporters.raw import raw_row
from exporters.sft import sft_row

FORMATS: dict[str, Callable[[Trajectory, Review], dict[str, Any]]] = {
    "sft": sft_row,
    "raw": raw_row,
}


@dataclass(frozen=True)
class Selection:
    """What may leave the store. Stand-ins and infrastructure failures never may."""

    scenes: frozenset[str] | None = None
    """None: all."""
    embedded: bool = False
    """Also attempts by the small model shipped for demonstrations."""
    unverified: bool = False
    """Also attempts whose task has no checks, accepted by nobody."""

    def refuses(self, item: Reviewed) -> str | None:
        """Return why an attempt stays behind, as a short name to count by; None if it goes."""
        trajectory, review = item.trajectory, item.review
        failure = trajectory.failure
        if self.scenes is not None and trajectory.assignment.task.scene not in self.scenes:
            return "other scene"
        if trajectory.environment.is_standin or trajectory.agent.model_source == "standin":
            return "stand-in"
        if failure is not None and failure.failure_class is not FailureClass.AGENT:
            return "infrastructure failure"
        if trajectory.agent.model_source == "embedded" and not self.embedded:
            return "embedded model (--include-embedded)"
        if trajectory.agent.kind == "nop":
            return "agent that does nothing"
        if trajectory.verdict.passed is None:
            if not self.unverified:
                return "unverified (--include-unverified)"
            return "not accepted" if failure is not None else None
        if review.decision != "accepted" or not trajectory.verdict.passed:
            return "not accepted"
        return None


@dataclass(frozen=True)
class Exported:
    """What an export came to."""

    rows: int
    left_out: Counter[str]


def export(
    store: Store,
    fmt: str,
    out: Path,
    selection: Selection,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Exported:
    """Write ``out`` as JSON lines; it appears whole or not at all.

    Raises `StoreError` when it cannot be written.
    """
    project = FORMATS[fmt]
    left_out: Counter[str] = Counter()
    rows = 0
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                for seen, item in enumerate(store.reviewed(), start=1):
                    progress(seen)
                    reason = selection.refuses(item)
                    if reason is None:
                        try:
                            row = project(item.trajectory, item.review)
                        except NotExportable as error:
                            reason = error.reason
                        else:
                            file.write(orjson.dumps(row) + b"\n")
                            rows += 1
                    if reason is not None:
                        left_out[reason] += 1
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{out}: {error.strerror or error}") from None
    return Exported(rows, left_out)
