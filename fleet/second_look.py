"""`fleet review`: people look at attempts, blind to what the machine says, and label them."""

from __future__ import annotations

import hashlib
import heapq
import io
import re
import sys
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from common.model import explain
from common.review import Label, Review
from common.store import Damaged, Store, StoreError
from common.trajectory import Trajectory
from fleet.agreement import agreement
from fleet.arguments import SceneOption
from fleet.context import (
    Output,
    clean,
    err,
    fail,
    guard,
    out,
    settings_for,
    state_folder,
    store_of,
    who,
)
from fleet.show import transcript

review_app = typer.Typer(
    help="People look at attempts, blind to the machine's opinion, and say what they think.",
    no_args_is_help=True,
)
review_app.command(epilog="Example: fleet review agreement --json")(agreement)


class VerdictWord(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    UNSURE = "unsure"


class FailureType(StrEnum):
    """What went wrong, in a person's eyes."""

    WRONG_RESULT = "wrong_result"
    INCOMPLETE = "incomplete"
    TOOL_MISUSE = "tool_misuse"
    HALLUCINATED = "hallucinated"
    UNSAFE = "unsafe"
    ENVIRONMENT = "environment"
    CHECK_WRONG = "check_wrong"
    OTHER = "other"


Full = Annotated[bool, typer.Option("--full", help="Long results too.")]
_NOTE = 4000
"""Characters a note may have: what `Label.note` takes."""
_WIDTH = 100
"""Columns of a transcript that is written to a file."""


@review_app.command("next", epilog="Example: fleet review next --scene code")
def review_next(
    scene: SceneOption = None,
    full: Full = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Say which one it is and where to read it; ask nothing.")
    ] = False,
    output: Output = None,
) -> None:
    """Show the attempt that most needs your eyes, and ask what you think of it.

    First those that nothing verified, then those that look doubtful, then all others in an order
    of no meaning. What checks, judges and the reviewer say is hidden until you have answered.
    """
    settings = settings_for(output)
    store, by = store_of(settings), who().by
    trajectory = guard(lambda: next_for(store, by, scene))
    if trajectory is None:
        if as_json:
            print("null")  # noqa: T201
        else:
            out.print("nothing is left for you to look at")
        return
    if as_json:
        file = _kept(trajectory, state_folder(settings.output))
        told = {"task_id": trajectory.task_id, "attempt_id": trajectory.attempt_id,
                "scene": trajectory.assignment.task.scene, "transcript": str(file)}  # fmt: skip
        print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())  # noqa: T201
        return
    out.print(transcript(trajectory, None, full=full, blind=True))
    _keep(store, _asked(trajectory, by))
    _say_what_the_machine_says(store, trajectory)


@review_app.command("label", epilog="Example: fleet review label task-7 r1-s0-… --verdict fail")
def review_label(
    task_id: str,
    attempt_id: str,
    verdict: Annotated[VerdictWord, typer.Option(help="Did it do what was asked?")],
    score: Annotated[int | None, typer.Option(min=0, max=100, help="How well, 0-100.")] = None,
    failure_type: Annotated[FailureType | None, typer.Option(help="What went wrong.")] = None,
    note: Annotated[str, typer.Option(help="Anything another person should know.")] = "",
    output: Output = None,
) -> None:
    """Say what you think of an attempt. Saying it again replaces what you said."""
    if (wrong := _wrong_with(note)) is not None:
        fail(f"--note: {wrong}", 2)
    if verdict is VerdictWord.PASS and failure_type is not None:
        fail(f"--failure-type: {failure_type} cannot be what went wrong in a pass", 2)
    store = store_of(settings_for(output))
    if attempt_id not in guard(lambda: store.attempts_of(task_id)):
        fail(f"no attempt {attempt_id!r} of {task_id!r}")
    if guard(lambda: store.read_review(task_id, attempt_id)) is None:
        fail(f"{attempt_id} of {task_id!r} has no review: it is in review, or no result at all")
    _keep(store, _label(task_id, attempt_id, who().by, verdict, score, failure_type, note))
    out.print(clean(f"{task_id} {attempt_id}: {verdict}, says {who().by}"))


def next_for(store: Store, by: str, scene: str | None = None) -> Trajectory | None:
    """Return the attempt that ``by`` should look at next; None when all have been looked at.

    The same attempt until it is labelled: nothing is handed out. Damaged files are passed over.
    """
    waiting = list(_candidates(store))
    heapq.heapify(waiting)
    while waiting:
        _, _, task_id, attempt_id = heapq.heappop(waiting)
        # A label that cannot be read costs itself only: who said it is asked again.
        if any(x.by == by for x in store.labels_of(task_id, attempt_id, damaged=_pass_over)):
            continue
        try:
            trajectory = store.read_attempt(task_id, attempt_id)
        except Damaged as error:
            _pass_over(str(error))
            continue
        if scene in (None, trajectory.assignment.task.scene):
            return trajectory
    return None


def _candidates(store: Store) -> Iterator[tuple[int, str, str, str]]:
    """Yield all reviewed attempts as urgency (0 first), an arbitrary fixed order, and their ids."""
    with Progress(
        SpinnerColumn(), TextColumn("{task.completed} reviews read"), console=err, transient=True
    ) as bar:
        job = bar.add_task("", total=None)
        for task_id in store.tasks():
            for attempt_id in store.attempts_of(task_id):
                try:
                    review = store.read_review(task_id, attempt_id)
                except Damaged as error:
                    _pass_over(str(error))
                    continue
                bar.advance(job)
                if review is not None:
                    order = hashlib.sha256(f"{task_id}/{attempt_id}".encode()).hexdigest()
                    yield _urgency(review), order, task_id, attempt_id


def _pass_over(trouble: str) -> None:
    err.print(clean(f"passed over: {trouble}", style="yellow"))


def _urgency(review: Review) -> int:
    if review.decision == "human":
        return 0
    return 1 if review.second_look else 2


def _asked(trajectory: Trajectory, by: str) -> Label:
    """Ask on the terminal what a person thinks; what cannot be kept is asked for again."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Bytes that are not UTF-8 reach the question they answer; else they would end the command.
        sys.stdin.reconfigure(errors="surrogateescape")
    verdict = typer.prompt(f"Did it do what was asked? ({', '.join(VerdictWord)})",
                           value_proc=_read_verdict)  # fmt: skip
    score = typer.prompt(
        "Score 0-100, or nothing", default="", show_default=False, value_proc=_read_score
    )
    kind = None
    if verdict is not VerdictWord.PASS:
        out.print(clean(f"What went wrong: {', '.join(FailureType)}", style="dim"))
        kind = typer.prompt(
            "Which, or nothing", default="", show_default=False, value_proc=_read_failure
        )
    note = typer.prompt("A note, or nothing", default="", show_default=False, value_proc=_read_note)
    return _label(trajectory.task_id, trajectory.attempt_id, by, verdict, score, kind, note)


def _read_verdict(text: str) -> VerdictWord:
    try:
        return VerdictWord(text.strip().lower())
    except ValueError:
        raise typer.BadParameter(f"one of {', '.join(VerdictWord)}") from None


def _read_failure(text: str) -> FailureType | None:
    try:
        return FailureType(text.strip().lower()) if text.strip() else None
    except ValueError:
        raise typer.BadParameter(f"one of {', '.join(FailureType)}") from None


def _read_score(text: str) -> int | None:
    text = text.strip()
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) > 100:
        raise typer.BadParameter(f"{text!r} is no number from 0 to 100")
    return int(text)


def _read_note(text: str) -> str:
    if (wrong := _wrong_with(text)) is not None:
        raise typer.BadParameter(wrong)
    return text


def _wrong_with(note: str) -> str | None:
    """Return why a note cannot be kept."""
    if len(note) > _NOTE:
        return f"a note has at most {_NOTE:,} characters; these are {len(note):,}"
    return None if note.isascii() or _is_utf8(note) else "what was typed is not UTF-8"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _label(
    task_id: str,
    attempt_id: str,
    by: str,
    verdict: VerdictWord,
    score: int | None,
    failure_type: FailureType | None,
    note: str,
) -> Label:
    try:
        return Label(
            task_id=task_id, attempt_id=attempt_id, by=by, verdict=verdict.value, score=score,
            failure_type=failure_type.value if failure_type else None, note=note, at=time.time(),
        )  # fmt: skip
    except ValidationError as error:
        fail("; ".join(f"{field}: {why}" for field, why in explain(error)), 2)


def _keep(store: Store, label: Label) -> None:
    guard(lambda: store.write_label(label))


def _kept(trajectory: Trajectory, folder: Path) -> Path:
    """Write the blind transcript where a person or a page can read it."""
    file = folder / "second_look" / trajectory.task_id / f"{trajectory.attempt_id}.txt"

    def write() -> Path:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", encoding="utf-8", errors="replace") as target:
                console = Console(file=target, width=_WIDTH, highlight=False, no_color=True)
                console.print(transcript(trajectory, None, full=True, blind=True))
        except OSError as error:
            raise StoreError(f"{file}: {error.strerror or error}") from None
        return file

    return guard(write)


def _say_what_the_machine_says(store: Store, trajectory: Trajectory) -> None:
    review = guard(lambda: store.read_review(trajectory.task_id, trajectory.attempt_id))
    if review is not None:
        score = "no score" if review.score is None else f"score {review.score}"
        out.print(clean(f"the machine says: {review.decision}, {score}: {review.reason}"))
    out.print("kept; the next one: fleet review next")
