"""`fleet show`: a trajectory as a transcript a person reads from top to bottom, and its history."""

from __future__ import annotations

import sys
from typing import Annotated

import orjson
import typer
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from common.review import Review
from common.trajectory import Step, Trajectory
from fleet import history as past
from fleet.context import Output, clean, fail, guard, out, settings_for, store_of
from fleet.findings import findings

_SHOWN = 4000


def show_command(
    task_id: str,
    output: Output = None,
    attempt: Annotated[str | None, typer.Option(help="Which attempt. Default: the last.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Long results too.")] = False,
    history: Annotated[
        bool, typer.Option("--history", help="Only the table of all its attempts.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="The stored file itself, or the history's rows.")
    ] = False,
) -> None:
    """Show a task's trajectory as a transcript, with verdict, review and the task's history."""
    store = store_of(settings_for(output))
    attempts = guard(lambda: store.attempts_of(task_id))
    if not attempts:
        close = [t for t in store.tasks() if task_id in t][:5]
        fail(f"no attempt of {task_id!r}" + (f"; there is: {', '.join(close)}" if close else ""))
    if attempt is not None and attempt not in attempts:
        fail(f"no attempt {attempt!r}; there is: {', '.join(attempts)}")
    chosen = attempt or attempts[-1]
    if as_json and not history:
        sys.stdout.buffer.write(store.attempt_path(task_id, chosen).read_bytes() + b"\n")
        return
    words = guard(lambda: past.words_on(store.root, task_id))
    if not history:
        trajectory = guard(lambda: store.read_attempt(task_id, chosen))
        review = guard(lambda: store.read_review(task_id, chosen))
        ended = past.ended(review, words) if review is not None else None
        out.print(transcript(trajectory, review, full=full, ended=ended))
    rows = guard(lambda: past.history(store, task_id, words))
    if as_json:
        data = orjson.dumps(past.as_dicts(rows), option=orjson.OPT_INDENT_2)
        print(data.decode())  # noqa: T201
        return
    out.print(past.table(rows, full=full))
    if not history:
        _show_findings(rows, words, chosen, full)


def _show_findings(rows: list[past.Row], words: past.Words, chosen: str, full: bool) -> None:
    """Say what the review of the chosen attempt found, or else the last one that has a review."""
    reviews = {row.attempt_id: row.review for row in rows if row.review is not None}
    review = reviews.get(chosen) or (list(reviews.values())[-1] if reviews else None)
    if review is not None:
        out.print(findings(review, rows, words, full=full))


def transcript(
    trajectory: Trajectory,
    review: Review | None,
    *,
    full: bool,
    blind: bool = False,
    ended: past.Ended | None = None,
) -> RenderableType:
    """Return the whole attempt; nothing in it can style or escape the terminal.

    ``blind``: without who acted and what checks, judges and reviewers say of it; ``ended``: how
    the waiting ended that the review speaks of.
    """
    task = trajectory.assignment.task
    head = Text.assemble(
        (f"{task.task_id}  ", "bold"),
        f"{trajectory.attempt_id}\n",
        f"scene {task.scene}" if blind else _circumstances(trajectory),
    )
    if not blind and (replayed := trajectory.replayed_usage.calls):
        head.append(
            f"\nresumed: {replayed} of {trajectory.usage.calls} model answers are those an earlier "
            "attempt paid for; every action was executed again"
        )
    parts: list[RenderableType] = [head, Panel(clean(task.description), title="task")]
    for hint in trajectory.assignment.hints:
        parts.append(clean(f"hint: {hint}", style="yellow"))
    parts += [_step(step, full) for step in trajectory.steps]
    if trajectory.failure is not None:
        failure = trajectory.failure
        parts.append(
            clean(f"{failure.kind} ({failure.failure_class}): {failure.message}", style="red")
        )
    parts.append(Text(f"ended: {trajectory.stop_reason}", style="bold"))
    if blind:
        answer = clean(trajectory.final_result or "(none)")
        return Group(*parts, Panel(answer, title="its answer", title_align="left"))
    parts.append(_verdict(trajectory))
    if review is not None:
        score = "no score" if review.score is None else f"score {review.score}"
        decision = review.decision if ended is None else f"{review.decision}, {ended.how}"
        parts.append(clean(f"review: {decision}, {score}: {review.reason}", style="bold"))
        label = "next" if ended is None or ended.goes_on else "not applied"
        for change in review.changes:
            parts.append(Text(f"  {label}: ") + past.changed(change, full=full))
    return Group(*parts)


def _circumstances(trajectory: Trajectory) -> str:
    agent, usage = trajectory.agent, trajectory.usage
    who = agent.kind if agent.model is None else f"{agent.model} ({agent.provider})"
    return (
        f"scene {trajectory.assignment.task.scene} · revision {trajectory.revision} · by {who} · "
        f"in {trajectory.environment.backend} · {trajectory.total_duration:.1f} s · "
        f"{usage.prompt_tokens}+{usage.completion_tokens} tokens"
    )


def _step(step: Step, full: bool) -> RenderableType:
    body = Text()
    if step.thought:
        body.append(clean(step.thought + "\n\n", style="italic"))
    for name, value in step.action.arguments.items():
        text = value if isinstance(value, str) else repr(value)
        body.append(f"{name}: ", style="cyan")
        body.append(clean(("\n" if "\n" in text else "") + text.rstrip() + "\n"))
    seen = step.observation.text
    if not full and len(seen) > _SHOWN:
        seen = seen[:_SHOWN] + f"\n(… {len(seen) - _SHOWN} more characters; --full shows them)"
    if seen:
        body.append("→ ", style="bold")
        body.append(clean(seen.rstrip()))
    mark = "[green]ok[/]" if step.success else "[red]failed[/]"
    code = "" if step.exit_code is None else f" · exit {step.exit_code}"
    title = f"step {step.step_id} · {step.action.tool}"
    if step.replayed:
        title += " · replayed answer"
    return Panel(
        body,
        title=Text(title),
        title_align="left",
        subtitle=f"{mark}{code} · {step.duration:.2f} s",
    )


def _verdict(trajectory: Trajectory) -> RenderableType:
    passed = trajectory.verdict.passed
    if passed is None:
        return Text("verdict: unverified", style="yellow")
    lines = Text("verdict: ", style="bold")
    lines.append("passed" if passed else "failed", style="green" if passed else "red")
    for check in trajectory.verdict.checks:
        mark = "✓" if check.passed else "✗"
        detail = f": {check.detail}" if check.detail else ""
        lines.append(clean(f"\n  {mark} {check.id}{detail}"))
    return lines
