"""One review: score → propose → authorise → decide. Pure: the same attempt, the same review."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from common.review import Proposal, Review
from common.task import MAX_STEPS, Assignment, Change, RevisionScore, Task
from common.trajectory import StopReason, Trajectory
from reviewer import rubric
from reviewer.hints import hints_for
from reviewer.levels import level

_WARMER = 0.7
"""Retrying a small model at temperature 0 gains nothing; a fresh sample at 0.7 does."""
_MAX_TEMPERATURE = 1.2


@dataclass(frozen=True)
class Reviewed:
    """The review, and the revision it sends back to work, if any."""

    review: Review
    next: Assignment | None = None


def review(trajectory: Trajectory, *, reviewer: str, now: float) -> Reviewed:
    """Judge one committed attempt and say what follows."""
    found = rubric.signals(trajectory)
    passed = trajectory.verdict.passed
    points = rubric.score(passed, trajectory.verdict.reward, found)
    decision, reason = _decide(trajectory, points)
    proposals: tuple[Proposal, ...] = ()
    changes: tuple[Change, ...] = ()
    revision = None
    if decision == "iterate":
        proposals = propose(trajectory)
        changes = authorised(proposals, trajectory.assignment)
        if changes:
            revision = revised(trajectory, changes, points)
        else:
            decision, reason = "rejected", f"{reason}; no change it may make by itself is left"
    return Reviewed(
        Review(
            task_id=trajectory.task_id,
            attempt_id=trajectory.attempt_id,
            revision=trajectory.revision,
            sample=trajectory.sample,
            passed=passed,
            score=points,
            decision=decision,
            reason=reason,
            signals=found,
            proposals=proposals,
            changes=changes,
            rubric=rubric.RUBRIC,
            reviewed_at=now,
            reviewer=reviewer,
        ),
        revision,
    )


def _decide(
    trajectory: Trajectory, points: int | None
) -> tuple[Literal["accepted", "iterate", "rejected", "human"], str]:
    assignment = trajectory.assignment
    task, passed = assignment.task, trajectory.verdict.passed
    if passed is None or points is None:
        return "human", "unverified: the task has no checks, so a person has to look"
    if passed and points >= task.threshold:
        return "accepted", f"all checks passed; score {points} reaches {task.threshold}"
    short = f"checks passed, but score {points} is below {task.threshold}"
    if not passed:
        short = "failed: " + ", ".join(c.id for c in trajectory.verdict.checks if not c.passed)
    if trajectory.agent.kind != "llm":
        return "rejected", f"{short}; a scripted agent would do the same again"
    if trajectory.revision >= task.max_iterations:
        return "rejected", f"{short}; revision {trajectory.revision} was the last"
    scores = [h.score or 0 for h in assignment.history] + [points]
    if len(scores) >= 3 and max(scores[-2:]) <= max(scores[:-2]):
        return "rejected", f"{short}; no gain in two revisions"
    return "iterate", short


def propose(trajectory: Trajectory) -> tuple[Proposal, ...]:
    """Suggest changes for the next revision, each with a reason and the steps that show it."""
    assignment = trajectory.assignment
    task = assignment.task
    evidence = tuple(s.step_id for s in trajectory.steps if not s.success)
    proposals = []
    hints = hints_for(trajectory)
    if hints and hints != assignment.hints:
        proposals.append(
            Proposal(
                field="hints", before=list(assignment.hints), after=list(hints),
                reason="advice that fits how the attempt failed", evidence=evidence,
            )
        )  # fmt: skip
    now = task.sampling.temperature
    warmer = _WARMER if now is None or now < _WARMER else round(min(now + 0.2, _MAX_TEMPERATURE), 2)
    if warmer != now:
        proposals.append(
            Proposal(
                field="task.sampling.temperature", before=now, after=warmer,
                reason="a fresh sample: the same temperature tends to the same mistake",
                evidence=evidence,
            )
        )  # fmt: skip
    if trajectory.stop_reason is StopReason.MAX_STEPS:
        original = assignment.original_max_steps or task.max_steps
        most = min(2 * original, MAX_STEPS)
        if task.max_steps < most:
            proposals.append(
                Proposal(
                    field="task.max_steps", before=task.max_steps, after=most,
                    reason="it ran out of steps", evidence=evidence[-1:],
                )
            )  # fmt: skip
    return tuple(proposals)


def authorised(proposals: tuple[Proposal, ...], assignment: Assignment) -> tuple[Change, ...]:
    """Return the proposals that need nobody's word. The others wait in the review."""
    changes = []
    for proposal in proposals:
        if level(proposal, assignment) == "green":
            changes.append(
                Change(
                    field=proposal.field, before=proposal.before, after=proposal.after,
                    reason=proposal.reason, level="green",
                )
            )  # fmt: skip
    return tuple(changes)


def revised(trajectory: Trajectory, changes: tuple[Change, ...], points: int | None) -> Assignment:
    """Return the next revision: the same task with the changes in, and what came before."""
    before = trajectory.assignment
    task: dict[str, Any] = before.task.model_dump(mode="json")
    hints = before.hints
    original = before.original_max_steps
    for change in changes:
        match change.field:
            case "hints":
                hints = tuple(change.after)  # type: ignore[arg-type]
            case "task.sampling.temperature":
                task["sampling"]["temperature"] = change.after
            case "task.max_steps":
                original = original or before.task.max_steps
                task["max_steps"] = change.after
            case other:
                raise ValueError(f"no way to apply a change of {other!r}")
    history = RevisionScore(
        revision=trajectory.revision,
        attempt_id=trajectory.attempt_id,
        score=points,
        passed=trajectory.verdict.passed,
    )
    return Assignment(
        task=Task.model_validate(task),
        revision=before.revision + 1,
        sample=before.sample,
        hints=hints,
        changes=changes,
        history=(*before.history, history),
        original_max_steps=original,
    )
