"""What one review found, for a person: dimensions, judges, the group, and what was proposed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from common.review import Dimension, Group, JudgeReport, Proposal, Review
from common.task import Change
from fleet.context import clean
from fleet.history import LEVELS, Row, Words, ended, short


def findings(
    review: Review, rows: Sequence[Row], words: Words, *, full: bool = False
) -> RenderableType:
    """Return everything a review says beyond its decision."""
    parts: list[RenderableType] = [
        Text.assemble(("review of ", "bold"), (review.attempt_id, "bold"), f" by {review.rubric}")
    ]
    if review.dimensions:
        parts.append(_dimensions(review))
    if review.judge is not None:
        parts += _remarks(review.judge)
    if review.second_look:
        parts.append(clean(f"a person should look: {review.second_look}", style="yellow"))
    group = review.group or next(
        (r.review.group for r in rows if r.review and r.review.group), None
    )
    if group is not None:
        parts.append(_group(group))
    if review.proposals:
        parts.append(_proposals(review, rows, words, full))
    return Lines(*parts)


def _dimensions(review: Review) -> Table:
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = ("dimension", "weight", "points", "signals", "judge (median of 1-5, spread)")
    for head in heads:
        shown.add_column(head, justify="left" if head == "dimension" else "right")
    for one in review.dimensions:
        cells = (f"{one.weight:g}", _points(one.points), _points(one.signals))
        shown.add_row(clean(one.id), *cells, clean(_judged(review.judge, one)))
    if review.judge is not None:
        for judgement in review.judge.of("outcome"):
            said = _median(judgement.median, judgement.spread)
            shown.add_row("outcome", "", "", "", clean(f"{said} {judgement.model}"))
    return shown


def _judged(report: JudgeReport | None, one: Dimension) -> str:
    said = report.of(one.id) if report is not None else ()
    if not said:
        return "-" if one.judge is None else f"{one.judge:g}"
    return "\n".join(f"{_median(j.median, j.spread)} {j.model}" for j in said)


def _median(median: float | None, spread: float | None) -> str:
    if median is None:
        return "no vote"
    return f"{median:g}" if spread is None else f"{median:g} ±{spread:g}"


def _points(points: float | None) -> str:
    return "-" if points is None else f"{points:.2f}"


def _remarks(report: JudgeReport) -> Iterator[Text]:
    if report.missing:
        yield clean(f"judges: {report.missing}", style="yellow")
    if report.own_model:
        yield Text("the judge is the model that acted", style="yellow")


def _group(group: Group) -> Text:
    def chances(of: Mapping[str, float]) -> str:
        return ", ".join(f"{k}: {p:.2f}" for k, p in sorted(of.items(), key=lambda kp: int(kp[0])))

    text = f"first tries: {group.passed} of {group.size} passed"
    if group.pass_at:
        text += f" · pass@k {chances(group.pass_at)} · pass^k {chances(group.pass_all)}"
    return clean(f"{text} · spread of rewards {group.spread:.2f} · best {group.best}")


def _proposals(review: Review, rows: Sequence[Row], words: Words, full: bool) -> Table:
    shown = Table("proposed", "from", "to", "level", "by", "state", box=box.SIMPLE_HEAD,
                  pad_edge=False)  # fmt: skip
    for proposal, approval in _with_approvals(review):
        level = Text(proposal.level or "-", style=LEVELS.get(proposal.level or "", ""))
        shown.add_row(
            clean(proposal.field), clean(short(proposal.before, full)),
            clean(short(proposal.after, full)), level, clean(proposal.by),
            clean(_state(proposal, approval, review, _next_of(review, rows), words)),
        )  # fmt: skip
    return shown


def _with_approvals(review: Review) -> Iterator[tuple[Proposal, str | None]]:
    """Pair proposals with the approvals that were asked for: in order, none for green ones."""
    approvals = iter(review.approvals)
    for proposal in review.proposals:
        asked = proposal.level in ("yellow", "red") and proposal.refused is None
        yield proposal, next(approvals, None) if asked else None


def _next_of(review: Review, rows: Sequence[Row]) -> Row | None:
    wanted = (review.sample, review.revision + 1)
    return next((row for row in rows if (row.sample, row.revision) == wanted), None)


def _state(
    proposal: Proposal, approval: str | None, review: Review, after: Row | None, words: Words
) -> str:
    """Say what became of a proposal, as far as the store and the audit log know."""
    if proposal.refused is not None:
        return f"refused: {proposal.refused}"
    if approval is None:
        green = any(c.field == proposal.field and c.after == proposal.after for c in review.changes)
        if not green:
            return "not asked"
        over = ended(review, words)
        if after is None and review.decision == "waiting" and over is None:
            return "goes along with what people decide"
        if after is None and over is not None and not over.goes_on:
            return f"not applied: {over.how}"
        return f"applied in revision {review.revision + 1}"
    applied = _applied(approval, after)
    if applied is not None and after is not None:
        return f"applied in revision {after.revision}, by {', '.join(applied.by)} ({approval})"
    said = words.get(approval, {})
    state = said.get("state", "pending")
    if state == "pending" and (over := ended(review, words)) is not None:
        return f"{over.how} ({approval})"
    if state == "pending":
        return f"asked, no word yet: fleet approvals show {approval}"
    why = f": {said['why']}" if said.get("why") else ""
    by = "" if state == "expired" else f" by {said.get('by') or '?'}"
    return f"{state}{by}{why} ({approval})"


def _applied(approval: str, after: Row | None) -> Change | None:
    return next((c for c in after.changes if c.approval == approval), None) if after else None
