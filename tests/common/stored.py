"""Attempts to put into a store, and what lies in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.store import Store
from common.trajectory import Trajectory
from tests.exporters.attempts import attempt, review_of

FIRST = "r1-s0-1700000000000-0-d1-aaaaaaaa"


def made(task_id: str = "t", attempt_id: str = FIRST, **fields: Any) -> Trajectory:
    return attempt(task_id=task_id, attempt_id=attempt_id, **fields)


def keep(store: Store, task_id: str = "t", attempt_id: str = FIRST) -> None:
    """Write an attempt and its review."""
    store.write_attempt(made(task_id, attempt_id))
    store.write_review(review_of(made(task_id, attempt_id)))


def everything_in(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
