"""`fleet review agreement`: do people, checks, judges and the reviewer say the same?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Annotated, Any, Literal

import orjson
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from common.agreement import balanced_accuracy, cohen_kappa
from common.review import Label, Review
from common.store import Damaged, Store
from fleet.context import Output, clean, err, guard, out, settings_for, store_of
from reviewer.judge.tally import says_done
from reviewer.rubric import OUTCOME

Raters = Literal["person and verifier", "person and judge", "person and reviewer",
                 "person and person"]  # fmt: skip
RATERS: tuple[Raters, ...] = (
    "person and verifier", "person and judge", "person and reviewer", "person and person",
)  # fmt: skip
_LISTED = 50


@dataclass(frozen=True)
class Disagreement:
    """One attempt of which two say different things."""

    task_id: str
    attempt_id: str
    first: str
    first_says: bool
    second: str
    second_says: bool


@dataclass
class Compared:
    """How often two kinds of raters say the same, over all attempts both said something of."""

    raters: Raters
    pairs: list[tuple[bool, bool]] = field(default_factory=list)
    """What the other says, and what the person says, whose word counts as the truth."""
    disagreements: list[Disagreement] = field(default_factory=list)

    @property
    def agreement(self) -> float | None:
        same = sum(a == b for a, b in self.pairs)
        return same / len(self.pairs) if self.pairs else None

    @property
    def balanced(self) -> float | None:
        """None between people: neither of two is the truth."""
        return None if self.raters == "person and person" else balanced_accuracy(self.pairs)

    @property
    def kappa(self) -> float | None:
        return cohen_kappa(self.pairs)


@dataclass
class Agreement:
    """What labels say of the machine, and of one another."""

    compared: dict[Raters, Compared] = field(
        default_factory=lambda: {raters: Compared(raters) for raters in RATERS}
    )
    labels: int = 0
    unsure: int = 0
    """Of the labels: they say neither pass nor fail, and are compared with nothing."""
    attempts: int = 0
    damaged: list[str] = field(default_factory=list)


def agreement(
    full: Annotated[bool, typer.Option("--full", help="All disagreements.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    output: Output = None,
) -> None:
    """Show how well people, checks, judges and the reviewer agree, and on what they do not."""
    store = store_of(settings_for(output))
    found = guard(lambda: measure(store))
    if as_json:
        data = orjson.dumps(_as_dict(found), option=orjson.OPT_INDENT_2)
        print(data.decode())  # noqa: T201
    elif not found.labels:
        out.print("nobody has labelled anything yet: fleet review next")
    else:
        _print(found, full)
    for trouble in found.damaged:
        err.print(clean(f"left out: {trouble}", style="red"))
    if found.damaged:
        raise typer.Exit(1)


def measure(store: Store) -> Agreement:
    """Compare all labels of a store with what the machine says. Damaged files are named."""
    found = Agreement()
    with Progress(
        SpinnerColumn(), TextColumn("{task.completed} tasks read"), console=err, transient=True
    ) as bar:
        job = bar.add_task("", total=None)
        for task_id in store.tasks():
            for attempt_id in store.attempts_of(task_id):
                try:
                    labels = store.labels_of(task_id, attempt_id, damaged=found.damaged.append)
                    review = store.read_review(task_id, attempt_id) if labels else None
                except Damaged as error:
                    found.damaged.append(str(error))
                    continue
                if review is not None:
                    _add(found, review, labels)
            bar.advance(job)
    return found


def _add(found: Agreement, review: Review, labels: Sequence[Label]) -> None:
    found.attempts += 1
    found.labels += len(labels)
    sure = {said.by: said.verdict == "pass" for said in labels if said.verdict != "unsure"}
    found.unsure += len(labels) - len(sure)
    for by, says in sure.items():
        for raters, name, other in _machine(review):
            _pair(found.compared[raters], review, (name, other), (by, says))
    for one, other_person in combinations(sorted(sure.items()), 2):
        _pair(found.compared["person and person"], review, one, other_person)


def _machine(review: Review) -> Iterator[tuple[Raters, str, bool]]:
    """Yield what checks, judges and the reviewer say of an attempt; nothing where they abstain."""
    if review.passed is not None:
        yield "person and verifier", "verifier", review.passed
    for one in review.judge.of(OUTCOME) if review.judge else ():
        if one.median is not None:
            yield "person and judge", one.model, says_done(one)
    if review.decision != "human":
        yield "person and reviewer", "reviewer", review.decision == "accepted"


def _pair(
    compared: Compared, review: Review, other: tuple[str, bool], person: tuple[str, bool]
) -> None:
    compared.pairs.append((other[1], person[1]))
    if other[1] != person[1]:
        said = Disagreement(review.task_id, review.attempt_id, *person, *other)
        compared.disagreements.append(said)


def _print(found: Agreement, full: bool) -> None:
    shown = Table("who", "pairs", "agreement", "balanced accuracy", "Cohen's kappa")
    for one in found.compared.values():
        numbers = (one.agreement, one.balanced, one.kappa)
        cells = ("-" if number is None else f"{number:.2f}" for number in numbers)
        shown.add_row(one.raters, str(len(one.pairs)), *cells)
    out.print(shown)
    out.print(f"{found.labels} labels of {found.attempts} attempts, {found.unsure} unsure")
    every = [(one.raters, said) for one in found.compared.values() for said in one.disagreements]
    if not every:
        return
    listed = Table("task", "attempt", "who says", "and who says")
    for _, said in every if full else every[:_LISTED]:
        listed.add_row(
            clean(said.task_id), clean(said.attempt_id),
            clean(f"{said.first}: {_word(said.first_says)}"),
            clean(f"{said.second}: {_word(said.second_says)}"),
        )  # fmt: skip
    out.print(listed)
    if not full and len(every) > _LISTED:
        out.print(f"{len(every) - _LISTED} more: --full")


def _word(says: bool) -> str:
    return "pass" if says else "fail"


def _as_dict(found: Agreement) -> dict[str, Any]:
    return {
        "labels": found.labels, "unsure": found.unsure, "attempts": found.attempts,
        "damaged": found.damaged,
        "compared": [
            {
                "raters": one.raters, "n": len(one.pairs), "agreement": one.agreement,
                "balanced_accuracy": one.balanced, "kappa": one.kappa,
                "disagreements": [
                    {"task_id": said.task_id, "attempt_id": said.attempt_id,
                     "says": {said.first: _word(said.first_says),
                              said.second: _word(said.second_says)}}
                    for said in one.disagreements
                ],
            }
            for one in found.compared.values()
        ],
    }  # fmt: skip
