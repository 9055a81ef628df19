"""`fleet show` tells what became of a task: every revision, why it came about, who agreed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer
from typer.testing import CliRunner

from common.failures import Failure, FailureKind
from common.review import Dimension, Group, Judgement, JudgeReport, Label, Proposal
from common.store import Store
from common.task import Assignment, Change, Task
from common.trajectory import CheckResult, Verdict
from fleet.show import show_command
from tests.common.stored import FIRST, made
from tests.exporters.attempts import review_of

Run = Callable[..., tuple[int, str]]
SECOND, THIRD = FIRST.replace("r1", "r2"), FIRST.replace("r1", "r3")
HINTS = Change(
    field="hints", before=[], after=["Read the error."], reason="it failed", level="green"
)
WORDING = Change(
    field="task.description", before="Do it.", after="Do it well.", reason="vague",
    level="yellow", by=("ana@lab",), approval="ap-1",
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "output")


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.chdir(store.root.parent)
    app = typer.Typer()
    app.command()(show_command)

    def invoke(*argv: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(arg) for arg in argv])
        return done.exit_code, done.output

    return invoke


def keep(
    store: Store,
    attempt_id: str,
    came_by: tuple[Change, ...] = (),
    *,
    passed: bool | None = False,
    reward: float = 0.0,
    fields: dict[str, Any] | None = None,
    **review: Any,
) -> None:
    revision, sample = (int(part[1:]) for part in attempt_id.split("-")[:2])
    task = Task.model_validate({"task_id": "t", "task_type": "code", "description": "Do it."})
    trajectory = made(
        "t", attempt_id, revision=revision, sample=sample,
        assignment=Assignment(task=task, revision=revision, sample=sample, changes=came_by),
        verdict=Verdict(
            passed=passed, reward=reward, checks=(CheckResult(id="c", passed=bool(passed)),)
        ),
        **(fields or {}),
    )  # fmt: skip
    store.write_attempt(trajectory)
    if review:
        store.write_review(review_of(trajectory).model_copy(update=review))


def audit(store: Store, **record: Any) -> None:
    folder = store.root / "audit"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "decisions-2026-01.jsonl").open("ab") as file:
        file.write(orjson.dumps({"task_id": "t", **record}) + b"\n")


def lines_with(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


def test_every_revision_is_there_with_its_score_and_how_it_came_about(
    store: Store, run: Run
) -> None:
    warmer = Change(
        field="task.sampling.temperature", before=None, after=0.7, reason="again", level="green"
    )
    keep(store, FIRST, score=10, decision="iterate", changes=(HINTS,))
    keep(store, SECOND, (HINTS, warmer), reward=0.5, score=30, decision="waiting")
    keep(store, THIRD, (WORDING,), passed=True, reward=1.0, score=95, decision="accepted")
    store.write_label(Label(task_id="t", attempt_id=THIRD, by="bo", verdict="pass", at=1.0))

    code, shown = run("t", "--history")
    assert code == 0
    assert lines_with(shown, FIRST, "failed", "10", "iterate", "first try")
    assert lines_with(shown, SECOND, "failed (0.50)", "30", "waiting", "hints + Read the error.")
    assert lines_with(shown, "task.sampling.temperature: null → 0.7 (green)")
    assert lines_with(shown, f"{THIRD} ★", "passed", "95", "accepted", "1 pass")
    assert lines_with(
        shown, "task.description: Do it. → Do it well. (yellow, by ana@lab, approval ap-1)"
    )
    assert "step 1" not in shown
    assert shown.count("★") == 2  # the attempt, and what it means

    transcript = run("t")[1]
    assert "step 1" in transcript and "verdict: passed" in transcript and "history" in transcript

    rows = json.loads(run("t", "--history", "--json")[1])
    assert [(r["revision"], r["score"], r["first_try"], r["best"]) for r in rows] == [
        (1, 10, True, False), (2, 30, False, False), (3, 95, False, True),
    ]  # fmt: skip
    assert rows[2]["changes"][0]["from"] == "Do it."


def test_samples_are_told_apart_and_their_group_is_summed_up(store: Store, run: Run) -> None:
    other = FIRST.replace("s0", "s1")
    group = Group(
        size=2, passed=1, pass_at={"1": 0.5, "2": 1.0}, pass_all={"1": 0.5, "2": 0.0},
        spread=1.0, best=other, attempts=(FIRST, other),
    )  # fmt: skip
    keep(store, FIRST, score=10, decision="iterate", group=group)
    keep(store, SECOND, (HINTS,), passed=True, reward=1.0, score=96, decision="accepted")
    keep(store, other, passed=True, reward=1.0, score=96, decision="accepted", group=group)
    shown = run("t")[1]
    rows = json.loads(run("t", "--history", "--json")[1])
    assert [r["attempt_id"] for r in rows] == [FIRST, SECOND, other]
    assert [r["best"] for r in rows] == [False, False, True]  # first tries before those with help
    assert "1 of 2 passed" in shown and "pass@k 1: 0.50, 2: 1.00" in shown
    assert "pass^k 1: 0.50, 2: 0.00" in shown and f"best {other}" in shown


def test_what_became_of_each_proposal_is_said(store: Store, run: Run) -> None:
    def proposal(field: str, after: Any, level: Any, refused: str | None = None) -> Proposal:
        return Proposal(field=field, before=None, after=after, reason="r", level=level,
                        refused=refused)  # fmt: skip

    proposals = (
        proposal("hints", ["Read the error."], "green"),
        proposal("task.description", "Do it well.", "yellow"),
        proposal("task.task_id", "u", "red", "says what the task is"),
        proposal("task.timeout", 900, "red"),
        proposal("task.threshold", 10, "red"),
    )
    keep(
        store, FIRST, score=10, decision="waiting", proposals=proposals,
        changes=(HINTS.model_copy(update={"before": None}),), approvals=("ap-1", "ap-2", "ap-3"),
    )  # fmt: skip
    audit(store, approval_id="ap-2", by="bo@lab", said="reject", why="a trick")  # asked only
    shown = run("t")[1]
    assert lines_with(shown, "next: hints + Read the error. (green)")
    assert lines_with(shown, "hints", "green", "goes along with what people decide")
    assert lines_with(shown, "task.description", "yellow", "asked, no word yet", "show ap-1")
    assert lines_with(shown, "task.task_id", "red", "refused: says what the task is")
    assert lines_with(shown, "task.timeout", "asked, no word yet", "fleet approvals show ap-2")

    said = {"entry": "1-0", "approval_id": "ap-2", "by": "bo@lab", "why": "a trick"}
    audit(store, **said, state="rejected")
    shown = run("t")[1]
    assert lines_with(shown, "task.timeout", "rejected by bo@lab: a trick (ap-2)")

    keep(store, SECOND, (HINTS, WORDING), passed=True, reward=1.0, score=95, decision="accepted")
    shown = run("t", "--attempt", FIRST)[1]
    assert lines_with(shown, "task.description", "applied in revision 2, by ana@lab (ap-1)")
    assert lines_with(shown, "hints", "applied in revision 2")

    keep(store, THIRD, score=10, decision="rejected", proposals=proposals[3:])
    assert len(lines_with(run("t")[1], "not asked")) == 2


def test_dimensions_and_what_judges_said_are_shown(store: Store, run: Run) -> None:
    report = JudgeReport(
        judgements=(
            Judgement(criterion="reasoning", model="m-1", median=4.0, spread=1.0),
            Judgement(criterion="outcome", model="m-2", median=None),
        ),
        missing="the budget is spent",
    )
    keep(
        store, FIRST, passed=True, score=93, decision="accepted", judge=report,
        second_look="votes are apart", dimensions=(
            Dimension(id="reasoning", weight=2, points=0.8, signals=0.9, judge=4.0),
            Dimension(id="style", weight=1, points=None),
        ),
    )  # fmt: skip
    shown = run("t")[1]
    assert lines_with(shown, "reasoning", "2", "0.80", "0.90", "4 ±1 m-1")
    assert lines_with(shown, "style", "1", "-")
    assert lines_with(shown, "outcome", "no vote m-2")
    assert "judges: the budget is spent" in shown and "should look: votes are apart" in shown


def test_attempts_without_a_result_are_named_and_damage_costs_one_row(
    store: Store, run: Run
) -> None:
    lost = Failure(kind=FailureKind.SANDBOX_LOST, message="gone")
    broken = FIRST.replace("1700", "1600")
    keep(store, broken, passed=None, fields={"failure": lost})
    keep(store, FIRST, score=10, decision="iterate")
    keep(store, SECOND, (HINTS,))
    keep(store, THIRD, (HINTS,), score=20, decision="rejected")
    store.review_path("t", THIRD).write_text("{")
    code, shown = run("t", "--history")
    assert code == 0
    assert lines_with(shown, broken, "sandbox_lost", "no result")
    assert lines_with(shown, SECOND, "in review")
    assert lines_with(shown, THIRD, "damaged")
    code, shown = run("t")
    assert (code, "is not a review" in shown) == (1, True)


def test_nothing_in_a_change_can_style_the_terminal(store: Store, run: Run) -> None:
    evil = Change(field="task.description", before="\x1b[31m[red]x", after="[/]", reason="r",
                  level="yellow", by=("\x1b]0;ana",))  # fmt: skip
    keep(store, SECOND, (evil,), score=10, decision="rejected")
    code, shown = run("t", "--history")
    assert code == 0
    assert "\x1b" not in shown and "[red]x → [/]" in shown


def test_an_attempt_alone_is_shown_as_before(store: Store, run: Run) -> None:
    keep(store, FIRST, passed=True, reward=1.0, score=93, decision="accepted")
    assert orjson.loads(run("t", "--json")[1])["attempt_id"] == FIRST
    assert run("nobody")[0] == run("t", "--attempt", "r7")[0] == 1
    shown = run("t")[1]
    assert "review: accepted, score 93" in shown and "first try" in shown and "★" not in shown


RED = Proposal(field="task.timeout", before=None, after=900, reason="r", level="red")
GREEN = Proposal(field="hints", before=[], after=["Read the error."], reason="r", level="green")


def said(approval: str, by: str, state: str, then: str = "", **more: Any) -> dict[str, Any]:
    return {"entry": "1-0", "unit": "r1-s0", "approval_id": approval, "by": by, "state": state,
            "then": then, **more}  # fmt: skip


@pytest.mark.parametrize(
    ("line", "ended", "asked"),
    [
        (
            said("ap-1", "ana@lab", "rejected", "rejected", why="too slow"),
            "rejected by ana@lab", "rejected by ana@lab: too slow (ap-1)",
        ),
        (said("ap-1", "expiry", "expired", "rejected"), "expired", "expired (ap-1)"),
        (
            said("ap-1", "bo@lab", "cancelled", decision="cancel", why=""),
            "cancelled by bo@lab", "cancelled by bo@lab (ap-1)",
        ),
        (
            {"entry": "1-0", "attempt_id": FIRST, "decision": "cancelled", "by": "reviewer-1"},
            "cancelled", "cancelled (ap-1)",
        ),
    ],
)  # fmt: skip
def test_a_unit_that_has_ended_waits_for_nobody_and_asks_nothing(
    store: Store, run: Run, line: dict[str, Any], ended: str, asked: str
) -> None:
    keep(
        store, FIRST, score=10, decision="waiting", proposals=(GREEN, RED), approvals=("ap-1",),
        changes=(HINTS,),
    )  # fmt: skip
    before = run("t")[1]
    assert lines_with(before, FIRST, "waiting") and lines_with(before, "fleet approvals show ap-1")

    audit(store, **line)
    shown = run("t")[1]
    (row,) = lines_with(shown, FIRST, "first try")
    assert ended in row and "waiting" not in row
    assert lines_with(shown, "task.timeout", asked)
    assert "fleet approvals" not in shown and "goes along" not in shown and "next:" not in shown
    assert lines_with(shown, "hints", "green", f"not applied: {ended}")
    assert lines_with(shown, f"review: waiting, {ended}, score 10")
    (told,) = json.loads(run("t", "--history", "--json")[1])
    assert (told["decision"], told["ended"]) == ("waiting", ended)


def test_a_unit_waits_until_the_last_of_its_approvals_is_decided(store: Store, run: Run) -> None:
    two = (RED, RED.model_copy(update={"field": "task.threshold"}))
    keep(store, FIRST, score=10, decision="waiting", proposals=two, approvals=("ap-1", "ap-2"))
    audit(store, **said("ap-2", "ana@lab", "rejected", "waits"))
    assert lines_with(run("t")[1], FIRST, "waiting")
    audit(store, **said("ap-1", "bo@lab", "approved", "next"))
    shown = run("t")[1]
    assert lines_with(shown, FIRST, "decided by bo@lab", "first try")
    assert lines_with(shown, "task.timeout", "approved by bo@lab (ap-1)")
    assert lines_with(shown, "task.threshold", "rejected by ana@lab (ap-2)")


def test_each_file_of_an_attempt_says_what_it_can_whatever_befell_the_others(
    store: Store, run: Run
) -> None:
    keep(store, FIRST, passed=True, reward=1.0, score=93, decision="accepted")
    store.write_label(Label(task_id="t", attempt_id=FIRST, by="bo", verdict="pass", at=1.0))
    store.write_label(Label(task_id="t", attempt_id=FIRST, by="cy", verdict="pass", at=1.0))
    (bad,) = store.root.rglob("*.label.cy*.json")
    bad.write_text("{")
    code, shown = run("t", "--history")
    assert code == 0
    assert lines_with(shown, FIRST, "passed", "93", "accepted", "1 damaged, 1 pass", "first try")

    store.attempt_path("t", FIRST).write_text("{")
    shown = run("t", "--history")[1]
    assert lines_with(shown, FIRST, "damaged", "93", "accepted")
    (told,) = json.loads(run("t", "--history", "--json")[1])
    assert (told["decision"], told["passed"], told["labels"]) == ("accepted", True, {"pass": 1})
    assert "is not a trajectory" in told["trouble"] and "is not a label" in told["bad_labels"][0]
