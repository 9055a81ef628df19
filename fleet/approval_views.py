"""What `fleet approvals` shows: what waits in a table, and one approval with all there is to it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from common.approvals import Approval
from common.revision import same
from common.store import Store, StoreError
from common.task import RevisionScore
from common.trajectory import Step
from common.words import approving
from console.desk import Found
from console.shown import difference, text_of
from fleet.arguments import local_time
from fleet.context import clean
from fleet.history import LEVELS, changed, short

_CITED = 600
"""Characters shown of what a cited step did and of what came back; `fleet show` has it all."""
_SIGNS = {"+": "green", "-": "red", "@": "cyan"}
_UNITS = ((86_400, "d"), (3600, "h"), (60, "m"))


def told_span(seconds: float) -> str:
    """Return a span of time as people say it: 45s, 3m, 5h, 2d."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def pending(found: Sequence[Found]) -> Table:
    """Return what waits as a table, soonest expiry first."""
    now = time.time()
    heads = ("level", "scene", "task", "field", "from → to", "asked", "expires", "people")
    ids = _ids(one.approval.approval_id for one in found)
    shown = Table(ids, *heads, box=box.SIMPLE_HEAD, pad_edge=False)
    for one in found:
        wait, approval, proposal = one.wait, one.approval, one.approval.proposal
        left = wait.expires_at - now
        shown.add_row(
            approval.approval_id, level_of(approval), wait.scene, clean(wait.task_id),
            clean(proposal.field),
            clean(f"{short(proposal.before)} → {short(proposal.after)}"),
            f"{told_span(now - wait.asked_at)} ago",
            f"in {told_span(left)}" if left > 0 else "just now",
            _people(approval),
        )  # fmt: skip
    return shown


def decided(lines: Iterable[dict[str, Any]]) -> Table:
    """Return decided approvals, as the audit log has them."""
    lines = list(lines)
    ids = _ids(str(line["approval_id"]) for line in lines)
    shown = Table(ids, "decided", "state", "scene", "task", "field", "by", "why", "then",
                  box=box.SIMPLE_HEAD, pad_edge=False)  # fmt: skip
    for line in lines:
        cells = ("state", "scene", "task_id", "field", "by", "why", "then")
        at = line.get("at")
        shown.add_row(
            clean(str(line["approval_id"])),
            local_time(int(at * 1000)) if isinstance(at, int | float) else "",
            *(clean(str(line.get(cell) or "")) for cell in cells),
        )
    return shown


def forgotten(lines: Sequence[dict[str, Any]]) -> RenderableType:
    """Return what the audit log says of an approval that the server does not know any more."""
    last = lines[-1]
    head = Text.assemble((str(last["approval_id"]), "bold"), "  ")
    head.append(clean(f"{last.get('scene')} · {last.get('task_id')} · {last.get('attempt_id')}"))
    head.append(f"\nit was {last['state']}; the server has forgotten it, the audit log says:")
    parts: list[RenderableType] = [head]
    if "to" in last:  # what was cancelled with its task is told without its change
        parts.append(_panel(str(last.get("field")), _diff(last.get("from"), last["to"])))
    return Group(*parts, decided(lines))


def _ids(ids: Iterable[str]) -> Column:
    """Return a column of ids, whole however narrow the terminal: they are typed."""
    return Column("id", no_wrap=True, min_width=max(map(len, ids), default=2))


def level_of(approval: Approval) -> Text:
    level = approval.proposal.level or "red"
    return Text(level, style=LEVELS[level])


def everything(found: Found, output: Path) -> RenderableType:
    """Return all a person needs to decide; nothing in it can style or escape the terminal."""
    wait, approval, proposal = found.wait, found.approval, found.approval.proposal
    head = Text.assemble((approval.approval_id, "bold"), "  ", level_of(approval), "  ")
    head.append(clean(f"{wait.scene} · {wait.task_id} · {wait.attempt_id}"))
    head.append(clean(f"\nit did not succeed: {wait.reason}"))
    head.append("\nproposed: ", style="bold")
    head.append(clean(f"{proposal.field}, by {proposal.by}: {proposal.reason}"))
    head.append("\nimpact: ", style="bold")
    head.append(clean(approval.impact))
    parts: list[RenderableType] = [
        head,
        _panel(proposal.field, _diff(proposal.before, proposal.after)),
    ]
    if approval.options:
        parts += _options(approval)
    parts += _cited(wait.task_id, wait.attempt_id, proposal.evidence, output)
    if wait.history:
        parts.append(_scores(wait.history))
    if wait.greens:
        parts.append(Text("goes along, whatever is decided here:", style="bold"))
        parts += [Text("  ").append(changed(change)) for change in wait.greens]
    others = [a for a in wait.pending if a != approval]
    if others:
        ids = ", ".join(f"{a.approval_id} ({a.proposal.field})" for a in others)
        parts.append(clean(f"the same attempt also waits for: {ids}"))
    parts += _said(found)
    return Group(*parts)


def _said(found: Found) -> Iterator[Text]:
    approval = found.approval
    for word in approval.words:
        value = f" {short(word.value)}" if word.said == "choose" else ""
        why = f": {word.why}" if word.why else ""
        yield clean(f"{local_time(int(word.at * 1000))} {word.by}: {word.said}{value}{why}")
    if not approval.pending:
        yield clean(f"it is {approval.state}", style="bold")
        return
    yellow = approval.proposal.level == "yellow"
    people = "one person chooses" if yellow else f"{_people(approval)} people have approved"
    yield Text(
        f"waits until {local_time(int(found.wait.expires_at * 1000))}; {people}", style="bold"
    )
    verb, more = ("choose", " --option N") if yellow else ("approve", "")
    name = approval.approval_id
    yield Text(
        f"decide with: fleet approvals {verb} {name}{more}, or fleet approvals reject {name}"
    )


def _options(approval: Approval) -> Iterator[RenderableType]:
    proposal = approval.proposal
    for number, option in enumerate(approval.options, 1):
        mark = ""
        if same(option, proposal.before):
            mark = ", as it is now"
        elif same(option, proposal.after):
            mark = ", as proposed"
        yield _panel(f"option {number}{mark}", clean(text_of(option) or "(absent)"))
    if approval.editable:
        yield Text("or a value of your own: --edit TEXT, --edit-file FILE")


def _cited(
    task_id: str, attempt_id: str, evidence: Sequence[int], output: Path
) -> Iterator[RenderableType]:
    """The steps that the proposal rests on, in short."""
    if not evidence:
        return
    try:
        steps = {s.step_id: s for s in Store(output).read_attempt(task_id, attempt_id).steps}
    except StoreError as error:
        yield clean(f"its evidence cannot be shown: {error}", style="red")
        return
    for number in evidence:
        if number in steps:
            yield _step(steps[number])
        else:
            yield Text(f"step {number}: there is none", style="red")


def _step(step: Step) -> Panel:
    did = "\n".join(f"{name}: {text_of(value)}" for name, value in step.action.arguments.items())
    mark = "ok" if step.success else "failed"
    text = clean(f"{_cut(did)}\n→ {_cut(step.observation.text)}")
    return _panel(f"step {step.step_id} · {step.action.tool} · {mark}", text)


def _cut(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _CITED else f"{text[:_CITED]} … ({len(text) - _CITED} more)"


def _scores(history: Sequence[RevisionScore]) -> Table:
    shown = Table("revision", "attempt", "checks", "reward", "rubric", "score",
                  box=box.SIMPLE_HEAD, pad_edge=False)  # fmt: skip
    words = {True: "passed", False: "failed", None: "unverified"}
    for row in history:
        numbers = (row.reward, row.rubric, row.score)
        shown.add_row(
            str(row.revision), row.attempt_id, words[row.passed],
            *("-" if number is None else f"{number:g}" for number in numbers),
        )  # fmt: skip
    return shown


def _diff(before: JsonValue, after: JsonValue) -> Text:
    text = Text()
    for line in difference(before, after):
        text.append(clean(line + "\n", style=_SIGNS.get(line[:1], "")))
    text.rstrip()
    return text


def _panel(title: str, body: Text) -> Panel:
    return Panel(body, title=clean(title), title_align="left")


def _people(approval: Approval) -> str:
    return f"{approving(approval.words)} of {approval.people}"
