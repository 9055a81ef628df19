"""What became of a task, attempt by attempt: verdicts, scores, and what changed in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import JsonValue
from rich import box
from rich.table import Table
from rich.text import Text

from common import audit
from common.failures import FailureClass
from common.review import Label, Review
from common.store import Damaged, Store
from common.task import Change
from fleet.context import clean

LEVELS = {"green": "green", "yellow": "yellow", "red": "red"}
_DECISIONS = {"accepted": "bold green", "rejected": "red", "waiting": "yellow", "human": "yellow"}
_SHORT = 60

Words = Mapping[str, Mapping[str, Any]]
"""Approval id, or attempt id of a cancelled unit → the last thing the audit log says of it, in the
order it was said."""


@dataclass(frozen=True)
class Ended:
    """How a unit of work ended that waited for people, or was to go on."""

    how: str
    goes_on: bool
    """With a next revision; else the unit is over."""


@dataclass(frozen=True)
class Row:
    """One attempt, as far as its files can be read."""

    task_id: str
    attempt_id: str
    revision: int
    sample: int
    passed: bool | None = None
    reward: float | None = None
    broken: str | None = None
    """The failure of the infrastructure that ended it: it is evidence and no result."""
    changes: tuple[Change, ...] = ()
    """What this revision changed against the one before."""
    hints: tuple[str, ...] = ()
    review: Review | None = None
    ended: Ended | None = None
    """Where its review says that the unit waits or goes on, and that is over."""
    labels: tuple[Label, ...] = ()
    bad_labels: tuple[str, ...] = ()
    """What is wrong with those that cannot be read."""
    trouble: str | None = None
    """What is wrong with its other files."""

    @property
    def merit(self) -> tuple[bool, float, int]:
        """What attempts are compared by: the verifier first, then the score."""
        score = self.review.score if self.review is not None else None
        return (self.passed is True, self.reward or 0.0, score or 0)


def words_on(root: Path, task_id: str) -> Words:
    """Return what people said about a task's proposals, as the audit log below ``root`` has it.

    Raises `StoreError` when it cannot be read.
    """
    return audit.latest(root, task_id=task_id)


def ended(review: Review, words: Words) -> Ended | None:
    """Say how a unit ended after its review; None where the review says it, or it still waits."""
    if review.decision in ("waiting", "iterate") and review.attempt_id in words:
        return Ended("cancelled", goes_on=False)
    if review.decision != "waiting":
        return None
    last = next((words[a] for a in reversed(list(words)) if a in review.approvals), {})
    by, goes_on = last.get("by") or "?", last.get("then") == "next"
    if last.get("state") == "cancelled":
        return Ended(f"cancelled by {by}", goes_on=False)
    if not goes_on and last.get("then") != "rejected":
        return None
    if last.get("state") == "expired":
        return Ended("expired", goes_on)
    return Ended(f"{'decided' if goes_on else 'rejected'} by {by}", goes_on)


def history(store: Store, task_id: str, words: Words | None = None) -> list[Row]:
    """Return a row for every attempt of a task: by sample, then revision, then age.

    ``words``: as `words_on` returns them. A damaged file costs only what it would have said.
    Raises `StoreError` when the store cannot be read.
    """
    attempts = store.attempts_of(task_id)
    rows = [_row(store, task_id, attempt_id, words or {}) for attempt_id in attempts]
    return sorted(rows, key=lambda row: (row.sample, row.revision))


def best_of(rows: Sequence[Row]) -> Row | None:
    """Return the best reviewed attempt, a first try before others that came to the same."""
    reviewed = [row for row in rows if row.review is not None and row.trouble is None]
    first = sorted(reviewed, key=lambda row: row.revision)
    best = max(first, key=lambda row: row.merit, default=None)
    if best is None or len({row.sample for row in reviewed}) > 1:
        return best
    # The reviewer compared these very attempts, the rubric's points included.
    named = [row.review.best_attempt for row in first if row.review and row.review.best_attempt]
    return next((row for row in first if named and row.attempt_id == named[-1]), best)


def table(rows: Sequence[Row], *, full: bool = False) -> Table:
    """Return the rows as a table, first tries and retries told apart, the best one marked."""
    shown = Table(box=box.SIMPLE_HEAD, title="history", title_justify="left", pad_edge=False)
    samples = len({row.sample for row in rows}) > 1
    labelled = any(row.labels or row.bad_labels for row in rows)
    heads = ["sample"] * samples + ["revision", "attempt", "verdict", "score", "decision"]
    for head in (*heads, *["people say"] * labelled, "how it came about"):
        shown.add_column(head, justify="right" if head == "score" else "left")
    best = best_of(rows) if len(rows) > 1 else None
    for row in rows:
        cells = [Text(str(row.sample))] if samples else []
        star = " ★" if best is not None and row.attempt_id == best.attempt_id else ""
        cells += [Text(str(row.revision)), clean(row.attempt_id + star), _verdict(row), _score(row)]
        cells += [_decision(row), *[_labels(row)] * labelled, _cause(row, full)]
        shown.add_row(*cells)
    if best is not None:
        shown.caption = "★ the best so far"
        shown.caption_justify = "left"
    return shown


def as_dicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows for programs."""
    best = best_of(rows)
    return [
        {
            "task_id": row.task_id, "sample": row.sample, "revision": row.revision,
            "attempt_id": row.attempt_id, "first_try": row.revision == 1, "passed": row.passed,
            "reward": row.reward, "broken": row.broken, "trouble": row.trouble,
            "score": row.review.score if row.review else None,
            "decision": row.review.decision if row.review else None,
            "ended": row.ended.how if row.ended else None,
            "changes": [c.model_dump(mode="json", by_alias=True) for c in row.changes],
            "hints": list(row.hints), "labels": dict(Counter(x.verdict for x in row.labels)),
            "bad_labels": list(row.bad_labels),
            "best": best is not None and row.attempt_id == best.attempt_id,
        }
        for row in rows
    ]  # fmt: skip


def short(value: JsonValue, full: bool = False) -> str:
    """Return a value on one line; a long one is cut, and says so."""
    text: str = value if isinstance(value, str) else orjson.dumps(value).decode()
    if full:
        return text
    text = " ".join(text.split())
    return text if len(text) <= _SHORT else text[: _SHORT - 1] + "…"


def changed(change: Change, *, full: bool = False) -> Text:
    """Return one change in words: field, from, to, its level, and on whose word."""
    line = Text()
    if change.field == "hints" and isinstance(change.after, list):
        had = change.before if isinstance(change.before, list) else []
        new = [hint for hint in change.after if hint not in had]
        gone = [hint for hint in had if hint not in change.after]
        told = [f"+ {short(h, full)}" for h in new] + [f"- {short(h, full)}" for h in gone]
        line.append(clean("hints " + " ".join(told)))
    else:
        before, after = short(change.before, full), short(change.after, full)
        line.append(clean(f"{change.field}: {before} → {after}"))
    line.append(f" ({change.level}", style=LEVELS[change.level])
    if change.by:
        line.append(clean(f", by {', '.join(change.by)}"))
    if change.approval:
        line.append(clean(f", approval {change.approval}"))
    line.append(")", style=LEVELS[change.level])
    return line


def _row(store: Store, task_id: str, attempt_id: str, words: Words) -> Row:
    """Read each file of an attempt on its own: the others say what they say."""
    troubles: list[str] = []
    bad_labels: list[str] = []
    trajectory = review = None
    try:
        trajectory = store.read_attempt(task_id, attempt_id)
    except Damaged as error:
        troubles.append(str(error))
    try:
        review = store.read_review(task_id, attempt_id)
    except Damaged as error:
        troubles.append(str(error))
    labels = store.labels_of(task_id, attempt_id, damaged=bad_labels.append)
    told: dict[str, Any] = {
        "review": review, "ended": ended(review, words) if review else None,
        "labels": tuple(labels), "bad_labels": tuple(bad_labels),
        "trouble": "; ".join(troubles) or None,
    }  # fmt: skip
    if trajectory is None:
        revision, sample = (int(part[1:]) for part in attempt_id.split("-")[:2])
        passed = review.passed if review else None
        return Row(task_id, attempt_id, revision, sample, passed=passed, **told)
    failure = trajectory.failure
    broken = failure is not None and failure.failure_class is not FailureClass.AGENT
    return Row(
        task_id, attempt_id, trajectory.revision, trajectory.sample,
        passed=trajectory.verdict.passed, reward=trajectory.verdict.reward,
        broken=failure.kind.value if failure is not None and broken else None,
        changes=trajectory.assignment.changes, hints=trajectory.assignment.hints, **told,
    )  # fmt: skip


def _verdict(row: Row) -> Text:
    if row.trouble is not None:
        return Text("damaged", style="bold red")
    if row.broken is not None:
        return clean(row.broken, style="dim")
    if row.passed is None:
        return Text("unverified", style="yellow")
    if row.passed:
        return Text("passed", style="green")
    partly = f" ({row.reward:.2f})" if row.reward else ""
    return Text(f"failed{partly}", style="red")


def _score(row: Row) -> Text:
    score = row.review.score if row.review is not None else None
    return Text("-" if score is None else str(score), style="" if score is not None else "dim")


def _decision(row: Row) -> Text:
    if row.review is None:
        what = "unknown" if row.trouble else "no result" if row.broken else "in review"
        return Text(what, style="dim")
    text = Text(row.review.decision, style=_DECISIONS.get(row.review.decision, ""))
    if row.ended is not None:
        text = clean(row.ended.how, style="dim" if row.ended.goes_on else "red")
    if row.review.accepted_by == "judges":
        text.append(" by judges", style="yellow")
    if row.review.second_look:
        text.append(" (second look)", style="yellow")
    return text


def _labels(row: Row) -> Text:
    said: Counter[str] = Counter(label.verdict for label in row.labels)
    if row.bad_labels:
        said["damaged"] = len(row.bad_labels)
    return Text(", ".join(f"{n} {verdict}" for verdict, n in sorted(said.items())))


def _cause(row: Row, full: bool) -> Text:
    if row.trouble is not None:
        return clean(short(row.trouble, full), style="red")
    if row.revision == 1:
        return Text("first try", style="dim")
    if not row.changes:
        return Text("retry, nothing changed", style="dim")
    return Text("\n").join(changed(change, full=full) for change in row.changes)
