"""One streaming pass: read → select → project → write. Constant memory; repeatable to the byte."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from common.failures import FailureClass
from common.review import Label, Review
from common.store import Reviewed, Store, StoreError
from common.trajectory import Trajectory
from exporters.labels import accepted_by, people_say
from exporters.messages import NotExportable
from exporters.raw import raw_row
from exporters.sft import sft_row

Project = Callable[[Trajectory, Review, Sequence[Label]], dict[str, Any]]
FORMATS: dict[str, Project] = {
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
    """Also attempts whose task has no checks; rows say on whose word they count, if on any."""

    def refuses(self, item: Reviewed, labels: Sequence[Label] = ()) -> str | None:
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
        if people_say(labels) == "fail":
            return "a person says it failed"
        if trajectory.verdict.passed is None:
            if failure is not None:
                return "not accepted"
            return None if self.unverified else _unverified(review, labels)
        if review.decision != "accepted" or not trajectory.verdict.passed:
            return "not accepted"
        return None


def _unverified(review: Review, labels: Sequence[Label]) -> str:
    by = accepted_by(review, labels)
    accepted = f", accepted by {by}" if by else ""
    return f"unverified{accepted} (--include-unverified)"


@dataclass
class Exported:
    """What an export came to."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)
    """What is wrong with which file, a sentence each."""

    def cannot_read(self, trouble: str) -> None:
        self.damaged.append(trouble)
        self.left_out["damaged"] += 1


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
    done = Exported()
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                for seen, item in enumerate(store.reviewed(done.cannot_read), start=1):
                    progress(seen)
                    row = _row(store, item, selection, project, done.damaged)
                    if isinstance(row, str):
                        done.left_out[row] += 1
                    else:
                        file.write(orjson.dumps(row) + b"\n")
                        done.rows += 1
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(out)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{out}: {error.strerror or error}") from None
    return done


def _row(
    store: Store, item: Reviewed, selection: Selection, project: Project, damaged: list[str]
) -> dict[str, Any] | str:
    """Return an attempt's row, or why it has none."""
    before = len(damaged)
    labels = store.labels_of(item.review.task_id, item.review.attempt_id, damaged=damaged.append)
    if len(damaged) > before:
        return "damaged label"  # it might say that the attempt failed
    reason = selection.refuses(item, labels)
    if reason is not None:
        return reason
    try:
        return project(item.trajectory, item.review, labels)
    except NotExportable as error:
        return error.reason
