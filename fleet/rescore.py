"""`fleet rescore`: what another rubric would say of stored attempts. Nothing runs again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from common.failures import ConfigurationError
from common.review import DecisionName, Review
from common.store import Damaged, Store
from common.trajectory import Trajectory
from fleet.arguments import SceneOption
from fleet.context import Output, clean, err, fail, guard, out, settings_for, store_of
from reviewer.rubric import Rubric, load, rubrics
from reviewer.scoring import Assessment, assess, good
from reviewer.tries import Tries

_LISTED = 50
RubricOf = Callable[[str], Rubric | None]
"""Scene → the rubric for it; None where there is none to score it by."""


@dataclass(frozen=True)
class Selected:
    """Which attempts are scored again."""

    scene: str | None = None
    task: str | None = None
    """A glob over the task id."""
    decision: str | None = None
    """As reviewed first."""


@dataclass(frozen=True)
class Diff:
    """One attempt of which the other rubric says something else."""

    task_id: str
    attempt_id: str
    before: tuple[int | None, DecisionName]
    after: tuple[int | None, DecisionName]

    @property
    def gain(self) -> int:
        return (self.after[0] or 0) - (self.before[0] or 0)

    @property
    def order(self) -> tuple[bool, int]:
        """Other decisions first, then the largest differences."""
        return (self.before[1] == self.after[1], -abs(self.gain))


@dataclass
class Rescored:
    """What it came to."""

    tasks: int = 0
    attempts: int = 0
    written: int = 0
    decisions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(old, new) → attempts."""
    gains: list[int] = field(default_factory=list)
    """New score minus old, where both are numbers."""
    diffs: list[Diff] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)

    @property
    def mean_gain(self) -> float | None:
        return sum(self.gains) / len(self.gains) if self.gains else None


def rescore(
    rubric: Annotated[
        Path, typer.Option(help="A rubric, or a folder of them (SCENE.yaml; else the fleet's own).")
    ],
    scene: SceneOption = None,
    task: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only tasks whose id matches.")
    ] = None,
    decision: Annotated[
        DecisionName | None, typer.Option(help="Only attempts of which the review says this.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    full: Annotated[bool, typer.Option("--full", help="All attempts that change.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    output: Output = None,
) -> None:
    """Score stored attempts by another rubric, and show what would change.

    Judges' grades are taken from the reviews. The results lie beside the reviews, which stay as
    they are; nothing is run, sent back or accepted by this.
    """
    store = store_of(settings_for(output))
    try:
        rubric_of = _rubrics(rubric)
        wanted = Selected(scene, task, decision)
        found = guard(lambda: score_again(store, rubric_of, wanted, write=not dry_run))
    except ConfigurationError as error:
        fail(str(error), 78)
    if task is not None and not found.tasks:
        fail(f"--task: no task's id matches {task!r}")
    if as_json:
        data = orjson.dumps(_as_dict(found), option=orjson.OPT_INDENT_2)
        print(data.decode())  # noqa: T201
    else:
        _print(found, full, dry_run)
    for trouble in found.damaged:
        err.print(clean(f"left out: {trouble}", style="red"))
    if found.damaged:
        raise typer.Exit(1)


def score_again(store: Store, rubric_of: RubricOf, wanted: Selected, *, write: bool) -> Rescored:
    """Assess attempts anew, one in memory at a time; damaged ones are named and left out."""
    found, tries = Rescored(), Tries(store)
    tasks = [t for t in store.tasks() if wanted.task is None or fnmatchcase(t, wanted.task)]
    found.tasks = len(tasks)
    with Progress(
        BarColumn(), TextColumn("{task.completed}/{task.total} tasks"), console=err, transient=True
    ) as bar:
        for task_id in bar.track(tasks):
            for trajectory, review in _chosen(store, task_id, wanted, found):
                rubric = rubric_of(trajectory.assignment.task.scene)
                if rubric is None:
                    found.left_out["scene of another rubric"] += 1
                    continue
                new = reviewed_by(rubric, trajectory, review, tries)
                if write:
                    store.write_rescore(new, f"{rubric.label}-{rubric.sha256[:8]}")
                    found.written += 1
                _count(found, review, new)
    found.diffs.sort(key=lambda diff: diff.order)
    return found


def reviewed_by(rubric: Rubric, trajectory: Trajectory, review: Review, tries: Tries) -> Review:
    """Return what the reviewer would have said by ``rubric``, with the judges it had.

    They are trusted as they were: that they were measured by another rubric does not count here.
    What followed from the first review stays out: proposals, changes, and which attempt was best.
    """
    _, siblings = tries.around(trajectory)
    seen = assess(trajectory, rubric, siblings=siblings, report=review.judge)
    score, decision = _decide(trajectory, review, seen)
    threshold = trajectory.assignment.task.threshold
    told = "no score" if score is None else f"score {score}"
    return Review.model_validate(
        review.model_dump(by_alias=True)
        | {
            "score": score,
            "decision": decision,
            "reason": f"{told} by {rubric.label}, threshold {threshold}; "
            f"first: {review.decision}, score {review.score}",
            "accepted_by": _accepted_by(review, decision),
            "dimensions": seen.dimensions,
            "signals": seen.signals,
            "best_attempt": None,
            "proposals": (),
            "changes": (),
            "approvals": (),
            "rubric": rubric.label,
            "rubric_sha256": rubric.sha256,
            "reviewer": "rescore",
        }
    )


def _decide(
    trajectory: Trajectory, review: Review, seen: Assessment
) -> tuple[int | None, DecisionName]:
    """Apply the reviewer's rule to the new score; what did not follow from a score stays."""
    threshold, score = trajectory.assignment.task.threshold, seen.score
    if trajectory.verdict.passed is None:
        if review.accepted_by != "judges":
            return None, review.decision
        # That the judges agree stands; as there, the rubric decides whether it is good enough.
        score = good(seen.rubric)
        return score, "human" if score is None or score < threshold else "accepted"
    if score is None:
        return None, "human"
    if trajectory.verdict.passed and score >= threshold:
        return score, "accepted"
    # Too low now: nobody can say what another revision would have come to.
    return score, "rejected" if review.decision in ("accepted", "human") else review.decision


def _accepted_by(review: Review, decision: DecisionName) -> str | None:
    if decision != "accepted":
        return None
    return "judges" if review.accepted_by == "judges" else "verifier"


def _rubrics(path: Path) -> RubricOf:
    """Return how rubrics are found: one file for its own scene, or a folder before ours."""
    if path.is_dir():
        return rubrics(path).get
    one = load(path)
    return lambda scene: one if scene == one.scene else None


def _chosen(
    store: Store, task_id: str, wanted: Selected, found: Rescored
) -> Iterator[tuple[Trajectory, Review]]:
    """Yield a task's reviewed attempts that are wanted."""
    for attempt_id in store.attempts_of(task_id):
        try:
            review = store.read_review(task_id, attempt_id)
            if review is None or wanted.decision not in (None, review.decision):
                continue
            trajectory = store.read_attempt(task_id, attempt_id)
        except Damaged as error:
            found.damaged.append(str(error))
            continue
        if wanted.scene in (None, trajectory.assignment.task.scene):
            yield trajectory, review


def _count(found: Rescored, old: Review, new: Review) -> None:
    found.attempts += 1
    found.decisions[old.decision, new.decision] += 1
    if old.score is not None and new.score is not None:
        found.gains.append(new.score - old.score)
    before, after = (old.score, old.decision), (new.score, new.decision)
    if before != after:
        found.diffs.append(Diff(old.task_id, old.attempt_id, before, after))


def _print(found: Rescored, full: bool, dry_run: bool) -> None:
    shown = Table("before", "after", "attempts")
    for (before, after), count in sorted(found.decisions.items()):
        shown.add_row(before, after, str(count), style="bold" if before != after else "")
    out.print(shown)
    if found.diffs:
        listed = Table("task", "attempt", "score", "decision")
        for diff in found.diffs if full else found.diffs[:_LISTED]:
            listed.add_row(
                clean(diff.task_id), clean(diff.attempt_id),
                f"{_number(diff.before[0])} → {_number(diff.after[0])}",
                diff.after[1] if diff.before[1] == diff.after[1]
                else f"{diff.before[1]} → {diff.after[1]}",
            )  # fmt: skip
        out.print(listed)
        if not full and len(found.diffs) > _LISTED:
            out.print(f"{len(found.diffs) - _LISTED} more: --full")
    mean = "no score to compare" if found.mean_gain is None else f"mean {found.mean_gain:+.1f}"
    done = "nothing written" if dry_run else f"{found.written} written beside the reviews"
    out.print(f"{found.attempts} attempts, {len(found.diffs)} change, {mean}; {done}")
    for reason, count in sorted(found.left_out.items()):
        out.print(clean(f"{count} left out: {reason}", style="dim"))


def _number(score: int | None) -> str:
    return "-" if score is None else str(score)


def _as_dict(found: Rescored) -> dict[str, Any]:
    return {
        "attempts": found.attempts, "written": found.written, "mean_change": found.mean_gain,
        "decisions": [
            {"before": before, "after": after, "attempts": count}
            for (before, after), count in sorted(found.decisions.items())
        ],
        "changes": [
            {"task_id": d.task_id, "attempt_id": d.attempt_id,
             "score": {"before": d.before[0], "after": d.after[0]},
             "decision": {"before": d.before[1], "after": d.after[1]}}
            for d in found.diffs
        ],
        "left_out": dict(found.left_out), "damaged": found.damaged,
    }  # fmt: skip
