"""People look at attempts blind, say what they think once, and are compared with the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.queue.control import Who
from common.review import Judgement, JudgeReport, Label, Review
from common.store import Store
from common.task import Assignment, Task
from common.trajectory import CheckResult, Verdict
from fleet.second_look import FailureType, review_app
from tests.common.stored import FIRST, made
from tests.exporters.attempts import review_of

Run = Callable[..., tuple[int, str]]
SECRETS = ("some-model", "passed", "SECRET", "REFERENCE", "score", "all checks", "revision")
"""What only somebody who is not blind could see."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "output")


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(store.root.parent)

    def invoke(*argv: str, by: str = "ana", typed: str | bytes | None = None) -> tuple[int, str]:
        monkeypatch.setattr("fleet.second_look.who", lambda: Who(f"{by}@lab", ""))
        done = CliRunner().invoke(review_app, list(argv), input=typed)
        return done.exit_code, done.output

    return invoke


def keep(store: Store, task_id: str, attempt_id: str = FIRST, **review: Any) -> None:
    """Write an attempt that passed, and what is said of it."""
    task = Task.model_validate(
        {
            "task_id": task_id, "task_type": review.pop("scene", "code"), "description": "Do it.",
            "reference": {"answer": "REFERENCE"},
        }
    )  # fmt: skip
    check = CheckResult(id="c", passed=True, detail="SECRET")
    passed = review.get("passed", True)
    trajectory = made(
        task_id, attempt_id, revision=1, assignment=Assignment(task=task), final_result="42",
        verdict=Verdict(passed=passed, checks=(check,)),
    )  # fmt: skip
    store.write_attempt(trajectory)
    store.write_review(review_of(trajectory).model_copy(update=review))


def said(store: Store, task_id: str, attempt_id: str = FIRST) -> list[tuple[str, str]]:
    return [(one.by.split("@")[0], one.verdict) for one in store.labels_of(task_id, attempt_id)]


def test_a_person_sees_the_attempt_and_nothing_of_what_the_machine_says(
    store: Store, run: Run
) -> None:
    keep(store, "t", second_look="judges disagree")
    code, shown = run("next", typed="maybe\nfail\n101\n20\nno\nincomplete\nstopped early\n")
    blind, _, after = shown.partition("Did it do")
    assert code == 0
    assert "Do it." in blind and "42" in blind and "run_python" in blind
    assert not [word for word in SECRETS if word in blind]
    assert "accepted, score 93" in after

    (label,) = store.labels_of("t", FIRST)
    assert label.by.startswith("ana@")
    assert (label.verdict, label.score, label.failure_type, label.note) == (
        "fail", 20, "incomplete", "stopped early",
    )  # fmt: skip


def test_doubtful_attempts_come_first_and_everybody_gets_each_once(store: Store, run: Run) -> None:
    for n in range(4):
        keep(store, f"plain-{n}")
    keep(store, "doubtful", second_look="spread of votes")
    keep(store, "unverified", decision="human", passed=None, score=None)

    def work_through(by: str) -> list[str]:
        seen = []
        while (told := json.loads(run("next", "--json", by=by)[1])) is not None:
            again = json.loads(run("next", "--json", by=by)[1])
            assert again == told  # it stays until it is labelled
            seen.append(told["task_id"])
            args = ("label", told["task_id"], told["attempt_id"], "--verdict", "pass")
            assert run(*args, by=by)[0] == 0
        return seen

    order = work_through("ana")
    assert order[:2] == ["unverified", "doubtful"]
    assert sorted(order[2:]) == [f"plain-{n}" for n in range(4)] != order[2:]
    assert work_through("bo") == order
    code, shown = run("next")
    assert (code, shown.strip()) == (0, "nothing is left for you to look at")


def test_programs_are_told_where_a_blind_transcript_lies(store: Store, run: Run) -> None:
    keep(store, "t")
    keep(store, "w", scene="web")
    told = json.loads(run("next", "--scene", "web", "--json")[1])
    assert (told["task_id"], told["attempt_id"], told["scene"]) == ("w", FIRST, "web")
    text = Path(told["transcript"]).read_text()
    assert "Do it." in text and not [word for word in SECRETS if word in text]


def test_who_breaks_off_has_said_nothing(store: Store, run: Run) -> None:
    keep(store, "t")
    code, _ = run("next", typed="pass\n80\n")
    assert code == 1
    assert said(store, "t") == []


def test_saying_it_again_replaces_it_and_nonsense_is_refused(store: Store, run: Run) -> None:
    keep(store, "t")
    store.write_attempt(made("t", FIRST.replace("d1", "d2"), revision=1))
    assert run("label", "t", FIRST, "--verdict", "pass")[0] == 0
    for verdict in ("unsure", "fail"):
        assert run("label", "t", FIRST, "--verdict", verdict, "--failure-type", "unsafe")[0] == 0
    assert run("label", "t", FIRST, "--verdict", "pass", by="bo")[0] == 0
    assert said(store, "t") == [("ana", "fail"), ("bo", "pass")]

    assert "has no review" in run("label", "t", FIRST.replace("d1", "d2"), "--verdict", "pass")[1]
    for wrong, code in (
        (("label", "t", "r9-s0-1-0-d1-x", "--verdict", "pass"), 1),
        (("label", "../t", FIRST, "--verdict", "pass"), 1),
        (("label", "t", FIRST, "--verdict", "good"), 2),
        (("label", "t", FIRST, "--verdict", "pass", "--score", "101"), 2),
        (("label", "t", FIRST, "--verdict", "pass", "--failure-type", "ugly"), 2),
        (("label", "t", FIRST, "--verdict", "pass", "--note", "x" * 4001), 2),
        (("label", "t", FIRST, "--verdict", "pass", "--note", "\udcff"), 2),
        (("label", "t", FIRST, "--verdict", "pass", "--failure-type", "unsafe"), 2),
    ):
        assert run(*wrong)[0] == code, wrong
    assert said(store, "t") == [("ana", "fail"), ("bo", "pass")]


def test_a_note_that_is_too_long_is_asked_for_again_and_no_answer_is_lost(
    store: Store, run: Run
) -> None:
    keep(store, "t")
    code, shown = run("next", typed=f"fail\n20\nunsafe\n{'x' * 4001}\nit was sent\n")
    assert (code, "at most 4,000 characters" in shown) == (0, True), shown
    (label,) = store.labels_of("t", FIRST)
    assert (label.verdict, label.score, label.failure_type, label.note) == (
        "fail", 20, "unsafe", "it was sent",
    )  # fmt: skip


def test_what_is_typed_and_is_not_utf8_is_asked_for_again(store: Store) -> None:
    keep(store, "t")
    done = subprocess.run(
        [sys.executable, "-m", "fleet", "review", "next", "--output", store.root],
        input=b"\xe9\nfail\n20\nunsafe\ncaf\xe9\nit was sent\n", capture_output=True, timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},  # as most terminals; C is lenient
    )  # fmt: skip
    assert (done.returncode, "is not UTF-8" in done.stdout.decode()) == (0, True), done
    (label,) = store.labels_of("t", FIRST)
    assert (label.verdict, label.note) == ("fail", "it was sent")


def test_a_note_that_is_too_long_is_refused_in_a_sentence(store: Store, run: Run) -> None:
    keep(store, "t")
    code, shown = run("label", "t", FIRST, "--verdict", "pass", "--note", "x" * 4001)
    assert (code, shown.strip()) == (
        2, "fleet: --note: a note has at most 4,000 characters; these are 4,001",
    )  # fmt: skip


def test_a_damaged_label_is_said_again_by_whoever_said_it(store: Store, run: Run) -> None:
    keep(store, "t")
    assert run("label", "t", FIRST, "--verdict", "fail")[0] == 0
    (file,) = store.root.rglob("*.label.*.json")
    file.write_text("{")
    code, shown = run("next", typed="pass\n\n\n")
    assert (code, "is not a label" in shown, said(store, "t")) == (0, True, [("ana", "pass")])


def test_damaged_files_are_named_and_passed_over(store: Store, run: Run) -> None:
    for task_id in ("a", "b", "c"):
        keep(store, task_id)
    store.review_path("a", FIRST).write_text("{")
    store.attempt_path("b", FIRST).write_text("{")
    code, shown = run("next", typed="pass\n\n\n")
    assert code == 0
    assert said(store, "c") == [("ana", "pass")]
    assert "passed over" in shown
    store.write_label(Label(task_id="c", attempt_id=FIRST, by="bo", verdict="pass", at=1.0))
    for file in store.root.rglob("*.label.bo*.json"):
        file.write_text("{")
    code, shown = run("agreement")
    assert code == 1
    assert "is not a label" in shown


def judged(*medians: float | None) -> JudgeReport:
    votes = (Judgement(criterion="outcome", model=f"m{n}", median=m) for n, m in enumerate(medians))
    return JudgeReport(judgements=tuple(votes))


def test_agreement_is_measured_between_people_checks_judges_and_the_reviewer(
    store: Store, run: Run
) -> None:
    assert run("agreement")[0] == 1  # nothing in the store at all
    keep(store, "right", judge=judged(5, 4))
    keep(store, "missed", passed=False, decision="rejected", score=20, judge=judged(4, 5))
    keep(store, "wrong", passed=False, decision="rejected", score=20)
    keep(store, "open", passed=None, decision="human", score=None, judge=judged(2, 3))
    keep(store, "judges", passed=None, score=90, accepted_by="judges", judge=judged(5, 4))
    keep(store, "apart", passed=None, decision="human", score=None, judge=judged(5, 3, None))
    assert "nobody has labelled" in run("agreement")[1]
    for task_id, ana, bo in (
        ("right", "pass", "pass"), ("missed", "pass", "fail"), ("wrong", "fail", "fail"),
        ("open", "fail", "unsure"), ("judges", "pass", None), ("apart", "unsure", "fail"),
    ):  # fmt: skip
        assert run("label", task_id, FIRST, "--verdict", ana)[0] == 0
        if bo:
            assert run("label", task_id, FIRST, "--verdict", bo, by="bo")[0] == 0

    code, shown = run("agreement", "--json")
    told = json.loads(shown)
    compared = {one["raters"]: one for one in told["compared"]}
    assert (code, told["labels"], told["unsure"], told["attempts"]) == (0, 11, 2, 6)
    verifier = compared["person and verifier"]
    # (verifier, person): ++ ++ -+ -- -- --
    assert (verifier["n"], verifier["agreement"]) == (6, pytest.approx(5 / 6))
    assert verifier["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert verifier["kappa"] == pytest.approx((5 / 6 - 1 / 2) / (1 - 1 / 2))
    (disagreement,) = verifier["disagreements"]
    assert disagreement["task_id"] == "missed"
    assert list(disagreement["says"].values()) == ["pass", "fail"]
    # Each judge for itself: right four times, missed four, open twice, judges twice, apart twice
    judges = compared["person and judge"]
    assert (judges["n"], judges["agreement"]) == (14, pytest.approx(11 / 14))
    said_by = [(one["task_id"], one["says"]) for one in judges["disagreements"]]
    assert said_by == [
        ("apart", {"bo@lab": "fail", "m0": "pass"}),
        ("missed", {"bo@lab": "fail", "m0": "pass"}),
        ("missed", {"bo@lab": "fail", "m1": "pass"}),
    ]
    assert compared["person and reviewer"]["n"] == 7
    people = compared["person and person"]
    assert (people["n"], people["agreement"], people["balanced_accuracy"]) == (
        3, pytest.approx(2 / 3), None,
    )  # fmt: skip
    table = run("agreement")[1]
    assert "person and verifier" in table and "missed" in table and "11 labels" in table


def test_failure_types_fit_into_a_label() -> None:
    for kind in FailureType:
        Label(task_id="t", attempt_id="a", by="x", verdict="fail", failure_type=kind.value, at=1.0)


def test_reviews_of_older_releases_can_be_looked_at(store: Store, run: Run) -> None:
    keep(store, "t")
    path = store.review_path("t", FIRST)
    new = {"second_look", "dimensions", "judge", "group", "approvals", "accepted_by", "first_try",
           "best_attempt", "rubric_sha256"}  # fmt: skip
    old = {k: v for k, v in json.loads(path.read_bytes()).items() if k not in new}
    path.write_text(json.dumps(old))
    assert Review.model_validate(old).accepted_by is None
    assert json.loads(run("next", "--json")[1])["task_id"] == "t"
