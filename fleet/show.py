"""A trajectory as a transcript a person reads from top to bottom."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from common.review import Review
from common.trajectory import Step, Trajectory
from fleet.context import clean

_SHOWN = 4000


def transcript(trajectory: Trajectory, review: Review | None, *, full: bool) -> RenderableType:
    """Return the whole attempt; nothing in it can style or escape the terminal."""
    task = trajectory.assignment.task
    agent = trajectory.agent
    who = agent.kind if agent.model is None else f"{agent.model} ({agent.provider})"
    head = Text.assemble(
        (f"{task.task_id}  ", "bold"),
        f"{trajectory.attempt_id}\n",
        f"scene {task.scene} · revision {trajectory.revision} · by {who} · "
        f"in {trajectory.environment.backend} · {trajectory.total_duration:.1f} s · "
        f"{trajectory.usage.prompt_tokens}+{trajectory.usage.completion_tokens} tokens",
    )
    if replayed := trajectory.replayed_usage.calls:
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
    parts.append(_verdict(trajectory))
    if review is not None:
        score = "no score" if review.score is None else f"score {review.score}"
        parts.append(clean(f"review: {review.decision}, {score}: {review.reason}", style="bold"))
        for change in review.changes:
            parts.append(clean(f"  next: {change.field}: {change.before} → {change.after}"))
    return Group(*parts)


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


def show(console: Console, trajectory: Trajectory, review: Review | None, *, full: bool) -> None:
    console.print(transcript(trajectory, review, full=full))
