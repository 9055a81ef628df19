"""One review: score → propose → authorise → decide. Pure: the same attempt, the same review."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from common.approvals import Approval, Wait, refusal_key
from common.groups import Try
from common.review import APART, DecisionName, Group, JudgeReport, Proposal, Review
from common.revision import CannotApply, history_with, revised
from common.task import Assignment, Change, digest
from common.trajectory import Trajectory
from reviewer.judge.panel import agreed
from reviewer.policy import Policy, Ruling
from reviewer.propose import propose
from reviewer.rubric import Rubric
from reviewer.scoring import Assessment, assess, good

_POOR = 2.0


@dataclass(frozen=True)
class Rules:
    """What a reviewer goes by, the same for every attempt of a scene."""

    rubric: Rubric
    policy: Policy
    ask_people: Literal["early", "late", "never"] = "late"
    approval_ttl: float = 3 * 86_400.0
    """Seconds."""


@dataclass(frozen=True)
class Seen:
    """What there is besides the attempt itself."""

    group: Group | None = None
    siblings: tuple[Try, ...] = ()
    """First tries at the same task."""
    report: JudgeReport | None = None
    trusted: bool = False
    """The judges of `report` agree with verifiers well enough to accept something alone."""
    suggestions: tuple[Proposal, ...] = ()
    """A model's, besides those of the rules."""
    spent: str | None = None
    """Why no other attempt can be paid for."""


@dataclass(frozen=True)
class Reviewed:
    """The review, and what follows: a revision at once, people's word first, or nothing."""

    review: Review
    next: Assignment | None = None
    wait: Wait | None = None
    again: bool = False
    """Another revision is wanted, whether or not there is a change to make it of."""


@dataclass(frozen=True)
class _Verdict:
    decision: DecisionName
    reason: str
    score: int | None
    accepted_by: Literal["verifier", "judges"] | None = None


def review(
    trajectory: Trajectory,
    rules: Rules,
    seen: Seen = Seen(),
    *,
    reviewer: str,
    now: float,
    delivery: int = 1,
) -> Reviewed:
    """Judge one committed attempt and say what follows. ``delivery``: of its event."""
    found = assess(trajectory, rules.rubric, siblings=seen.siblings, report=seen.report)
    said = _decide(trajectory, found, seen)
    proposals: tuple[Proposal, ...] = ()
    changes: tuple[Change, ...] = ()
    revision, wait = None, None
    again = said.decision == "iterate"
    if again:
        ruled = _ruled(trajectory, found, rules, seen)
        proposals = tuple(proposal for proposal, _ in ruled)
        changes = tuple(_change(p) for p in proposals if p.level == "green" and not p.refused)
        asked = [(p, r) for p, r in ruled if p.level != "green" and not p.refused]
        if asked and _should_ask(trajectory, found, rules, bool(changes)):
            wait = _wait(trajectory, found, said, changes, asked, rules, now)
            said = _Verdict("waiting", f"{said.reason}; people have to decide", said.score)
        elif changes:
            history = history_with(trajectory, said.score, found.rubric)
            try:
                revision = revised(trajectory.assignment, changes, history)
            except CannotApply as error:
                said, changes = _Verdict("rejected", f"{said.reason}; {error}", said.score), ()
        else:
            why = f"{said.reason}; no change it may make by itself is left"
            said = _Verdict("rejected", why, said.score)
    return Reviewed(
        Review(
            task_id=trajectory.task_id,
            attempt_id=trajectory.attempt_id,
            revision=trajectory.revision,
            sample=trajectory.sample,
            passed=trajectory.verdict.passed,
            score=said.score,
            decision=said.decision,
            reason=said.reason,
            accepted_by=said.accepted_by,
            dimensions=found.dimensions,
            signals=found.signals,
            judge=seen.report,
            group=seen.group,
            second_look=second_look(trajectory, seen.report, said.accepted_by),
            best_attempt=_best(trajectory, found),
            proposals=proposals,
            changes=changes,
            approvals=tuple(a.approval_id for a in wait.approvals) if wait else (),
            rubric=rules.rubric.label,
            rubric_sha256=rules.rubric.sha256,
            reviewed_at=now,
            reviewer=reviewer,
            delivery=delivery,
        ),
        revision,
        wait,
        again,
    )


def _decide(trajectory: Trajectory, found: Assessment, seen: Seen) -> _Verdict:
    task, passed, points = trajectory.assignment.task, trajectory.verdict.passed, found.score
    if passed is None:
        return _unverified(trajectory, found, seen)
    if points is None:
        return _Verdict("human", "checks passed, but nothing in the rubric could be measured", None)
    if passed and points >= task.threshold:
        why = f"all checks passed; score {points} reaches {task.threshold}"
        return _Verdict("accepted", why, points, "verifier")
    short = f"checks passed, but score {points} is below {task.threshold}"
    if not passed:
        short = "failed: " + ", ".join(c.id for c in trajectory.verdict.checks if not c.passed)
    end = None
    if trajectory.agent.kind != "llm":
        end = "a scripted agent would do the same again"
    elif trajectory.revision >= task.max_iterations:
        end = f"revision {trajectory.revision} was the last"
    elif _gained_nothing(trajectory, found, revisions=2):
        end = "no gain in two revisions"
    elif seen.spent is not None:
        end = f"no other attempt can be paid for: {seen.spent}"
    if end is not None:
        return _Verdict("rejected", f"{short}; {end}", points)
    return _Verdict("iterate", short, points)


def _unverified(trajectory: Trajectory, found: Assessment, seen: Seen) -> _Verdict:
    """Nothing verified it: two judges that agree may accept it, or else a person has to look."""
    why = "unverified: the task has no checks, so a person has to look"
    report, threshold = seen.report, trajectory.assignment.task.threshold
    if report is None or not report.judgements:
        return _Verdict("human", why, None)
    if not agreed(report):
        return _Verdict("human", f"{why}; no two judges agree that it was done", None)
    if not seen.trusted:
        why = f"{why}; its judges are not known to agree with verifiers (fleet judge calibrate)"
        return _Verdict("human", why, None)
    score = good(found.rubric)
    if score is None or score < threshold:
        return _Verdict("human", f"{why}; two judges agree, but its score is {score}", None)
    why = f"unverified; two judges agree that it was done; score {score} reaches {threshold}"
    return _Verdict("accepted", why, score, "judges")


def _ruled(
    trajectory: Trajectory, found: Assessment, rules: Rules, seen: Seen
) -> list[tuple[Proposal, Ruling]]:
    """Return all proposals with their levels, the rules' own first.

    Where people are asked in any case, what a model suggests goes before the rules' proposals for
    the same field: advice that is ready-made must not shut out advice that fits.
    """
    own, suggested = propose(trajectory), seen.suggestions
    ruled = authorise((*own, *suggested), trajectory.assignment, rules.policy)
    greens = any(p.level == "green" and not p.refused for p, _ in ruled)
    if not suggested or not _should_ask(trajectory, found, rules, greens):
        return ruled
    return authorise((*suggested, *own), trajectory.assignment, rules.policy)


def authorise(
    proposals: Sequence[Proposal], assignment: Assignment, policy: Policy
) -> list[tuple[Proposal, Ruling]]:
    """Return the proposals with the level the table gives them; one for each field at most."""
    ruled, taken = [], list[str]()
    for proposal in proposals:
        ruling = policy.ruling(proposal, assignment)
        refused = ruling.refused
        key = refusal_key(proposal.field, proposal.after)
        if refused is None and ruling.level != "green" and key in assignment.refused:
            refused = "people were asked for it before, and it was not wanted"
        if refused is None and any(_overlap(proposal.field, field) for field in taken):
            refused = "another proposal changes the same"
        if refused is None:
            taken.append(proposal.field)
        told = {"level": ruling.level, "refused": refused, "options": ruling.options}
        ruled.append((proposal.model_copy(update=told), ruling))
    return ruled


def _overlap(one: str, other: str) -> bool:
    return one == other or one.startswith(other + ".") or other.startswith(one + ".")


def _should_ask(trajectory: Trajectory, found: Assessment, rules: Rules, greens: bool) -> bool:
    """People's time is dear: what can be done without them is tried first, once."""
    if rules.ask_people == "late":
        return not greens or _gained_nothing(trajectory, found, revisions=1)
    return rules.ask_people == "early"


def _gained_nothing(trajectory: Trajectory, found: Assessment, *, revisions: int) -> bool:
    """Were the last ``revisions`` no better than what was there before: checks, then rubric?"""
    merits = [past.merit for past in history_with(trajectory, found.score, found.rubric)]
    return len(merits) > revisions and max(merits[-revisions:]) <= max(merits[:-revisions])


def _best(trajectory: Trajectory, found: Assessment) -> str:
    """Of this sample's revisions so far; the earlier of two that are as good."""
    past = history_with(trajectory, found.score, found.rubric)
    return max(past, key=lambda one: (one.merit, -one.revision)).attempt_id


def second_look(
    trajectory: Trajectory, report: JudgeReport | None, accepted_by: str | None
) -> str | None:
    """Say why a person should look at an attempt before others; None for most."""
    if accepted_by == "judges":
        return "accepted by judges alone"
    if report is not None and report.missing is not None and trajectory.verdict.passed:
        return f"the judges were not heard on everything: {report.missing}"[:500]
    for one in report.judgements if report is not None else ():
        if one.spread is not None and one.spread > APART:
            return f"{one.model} cannot make up its mind about {one.criterion}"
        if trajectory.verdict.passed and one.median is not None and one.median <= _POOR:
            return f"all checks passed, but {one.model} finds {one.criterion} poor"
    return None


def _change(proposal: Proposal) -> Change:
    assert proposal.level is not None
    return Change(
        field=proposal.field, before=proposal.before, after=proposal.after,
        reason=proposal.reason, level=proposal.level,
    )  # fmt: skip


def _wait(
    trajectory: Trajectory,
    found: Assessment,
    said: _Verdict,
    greens: tuple[Change, ...],
    asked: Sequence[tuple[Proposal, Ruling]],
    rules: Rules,
    now: float,
) -> Wait:
    assignment = trajectory.assignment
    approvals = []
    for proposal, ruling in asked:
        about = [assignment.task.scene, trajectory.task_id, trajectory.attempt_id]
        name = digest([*about, proposal.field, proposal.before, proposal.after])
        options: list[object] = []
        if ruling.level == "yellow":
            for value in (proposal.after, *proposal.options, proposal.before):
                if value not in options:
                    options.append(value)
        approvals.append(
            Approval(
                approval_id=name[:10],
                proposal=proposal,
                impact=ruling.impact,
                people=ruling.people,
                options=tuple(options),
                editable=ruling.editable,
            )
        )
    return Wait(
        scene=assignment.task.scene,
        task_id=trajectory.task_id,
        unit=assignment.unit,
        attempt_id=trajectory.attempt_id,
        before=assignment,
        history=history_with(trajectory, said.score, found.rubric),
        greens=greens,
        approvals=tuple(approvals),
        reason=said.reason,
        asked_at=now,
        expires_at=now + rules.approval_ttl,
    )
