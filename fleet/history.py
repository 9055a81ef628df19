"""What became of a task, attempt by attempt: verdicts, scores, and what changed in between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import JsonValue
from rich import box
from rich.table import Table
from rich.text import Text

from common.failures import FailureClass
from common.review import Label, Review
from common.store import Damaged, Store
from common.task import Change
from fleet.context import clean

LEVELS = {"green": "green", "yellow": "yellow", "red": "red"}
_DECISIONS = {"accepted": "bold green", "rejected": "red", "waiting": "yellow", "human": "yellow"}
_SHORT = 60


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
    labels: tuple[Label, ...] = ()
    trouble: str | None = None
    """What is wrong with its files."""

    @property
    def merit(self) -> tuple[bool, float, int]:
        """What attempts are compared by: the verifier first, then the score."""
        score = self.review.score if self.review is not None else None
        return (self.passed is True, self.reward or 0.0, score or 0)


def history(store: Store, task_id: str) -> list[Row]:
    """Return a row for every attempt of a task: by sample, then revision, then age.

    A damaged file costs its own row only. Raises `StoreError` when the store cannot be read.
    """
    rows = [_row(store, task_id, attempt_id) for attempt_id in store.attempts_of(task_id)]
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
    labelled = any(row.labels for row in rows)
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
            "changes": [c.model_dump(mode="json", by_alias=True) for c in row.changes],
            "hints": list(row.hints), "labels": dict(Counter(x.verdict for x in row.labels)),
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


def _row(store: Store, task_id: str, attempt_id: str) -> Row:
    try:
        trajectory = store.read_attempt(task_id, attempt_id)
        failure = trajectory.failure
        broken = failure is not None and failure.failure_class is not FailureClass.AGENT
        return Row(
            task_id, attempt_id, trajectory.revision, trajectory.sample,
            passed=trajectory.verdict.passed, reward=trajectory.verdict.reward,
            broken=failure.kind.value if failure is not None and broken else None,
            changes=trajectory.assignment.changes, hints=trajectory.assignment.hints,
            review=store.read_review(task_id, attempt_id),
            labels=tuple(store.labels_of(task_id, attempt_id)),
        )  # fmt: skip
    except Damaged as error:
        revision, sample = (int(part[1:]) for part in attempt_id.split("-")[:2])
        return Row(task_id, attempt_id, revision, sample, trouble=str(error))


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
        return Text("no result" if row.broken or row.trouble else "in review", style="dim")
    text = Text(row.review.decision, style=_DECISIONS.get(row.review.decision, ""))
    if row.review.accepted_by == "judges":
        text.append(" by judges", style="yellow")
    if row.review.second_look:
        text.append(" (second look)", style="yellow")
    return text


def _labels(row: Row) -> Text:
    said = Counter(label.verdict for label in row.labels)
    return Text(", ".join(f"{n} {verdict}" for verdict, n in sorted(said.items())))


def _cause(row: Row, full: bool) -> Text:
    if row.trouble is not None:
        return clean(short(row.trouble, full), style="red")
    if row.revision == 1:
        return Text("first try", style="dim")
    if not row.changes:
        return Text("retry, nothing changed", style="dim")
    return Text("\n").join(changed(change, full=full) for change in row.changes)
