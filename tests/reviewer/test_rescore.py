"""Another rubric is tried on what is stored: nothing runs, and nothing that was decided changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from common.review import Judgement, JudgeReport, Review
from common.store import Store
from common.task import Assignment, Task
from common.trajectory import Action, Observation, Step, Verdict
from fleet.rescore import rescore, reviewed_by
from reviewer.review import review
from reviewer.rubric import rubric_for
from reviewer.tries import Tries
from tests.common.stored import FIRST, made
from tests.exporters.attempts import review_of
from tests.reviewer.endings import FAILED, PASSED, RULES, often

Run = Callable[..., tuple[int, str]]
ANCHORS = {level: f"level {level}" for level in range(1, 6)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "output")


@pytest.fixture
def run(store: Store, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(store.root.parent)
    app = typer.Typer()
    app.command()(rescore)

    def invoke(*argv: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, [str(arg) for arg in argv])
        return done.exit_code, done.output

    return invoke


def strict(folder: Path, scene: str = "code", **changes: Any) -> Path:
    """A rubric for which only steps that fail count."""
    rubric = {
        "name": "strict", "version": 3, "scene": scene,
        "outcome": {"question": "Was it done?", "anchors": ANCHORS},
        "dimensions": [
            {"id": "care", "title": "Care", "weight": 1, "question": "With care?",
             "anchors": ANCHORS, "signals": {"wasted_steps": 1}, "judge": 0.5},
        ],
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    path = folder / f"{scene}.yaml"
    path.write_text(yaml.safe_dump(rubric | changes))
    return path


def step(number: int, success: bool) -> Step:
    return Step(
        step_id=number, action=Action(tool="run_python", arguments={"n": number}, call_id="c"),
        observation=Observation(text=""), success=success, started_at=1.0, duration=0.1,
    )  # fmt: skip


def keep(
    store: Store,
    task_id: str,
    attempt_id: str = FIRST,
    *,
    verdict: Verdict = PASSED,
    failing: int = 0,
    scene: str = "code",
    **review: Any,
) -> None:
    """An attempt of four steps, so many of them failing."""
    task = Task.model_validate({"task_id": task_id, "task_type": scene, "description": "Do it."})
    trajectory = made(
        task_id, attempt_id, revision=1, assignment=Assignment(task=task), verdict=verdict,
        steps=tuple(step(n, n > failing) for n in range(1, 5)),
    )  # fmt: skip
    store.write_attempt(trajectory)
    store.write_review(review_of(trajectory).model_copy(update={"accepted_by": None, **review}))


def files(store: Store) -> dict[str, bytes]:
    return {str(f.relative_to(store.root)): f.read_bytes() for f in store.root.rglob("*.json")}


def rescored(store: Store, task_id: str) -> Review:
    (path,) = store.root.rglob(f"{task_id}/*.rescore.*.json")
    return Review.model_validate_json(path.read_bytes())


def test_decisions_follow_the_new_scores_and_the_reviews_stay(store: Store, run: Run) -> None:
    keep(store, "clean", accepted_by="verifier")
    keep(store, "untidy", failing=2, accepted_by="verifier")  # 93 → 75
    keep(store, "rescued", failing=1, decision="iterate", score=70)  # 70 → 88
    keep(store, "failed", verdict=FAILED, decision="iterate", score=10)
    keep(store, "open", verdict=Verdict(passed=None), decision="human", score=None)
    before = files(store)
    rubric = strict(store.root.parent / "rubrics")

    code, shown = run("--rubric", rubric, "--json", "--dry-run")
    told = json.loads(shown)
    assert (code, told["attempts"], told["written"], files(store)) == (0, 5, 0, before)
    decisions = {(d["before"], d["after"]): d["attempts"] for d in told["decisions"]}
    assert decisions == {
        ("accepted", "accepted"): 1, ("accepted", "rejected"): 1, ("iterate", "accepted"): 1,
        ("iterate", "iterate"): 1, ("human", "human"): 1,
    }  # fmt: skip
    scores = {c["task_id"]: (c["score"]["before"], c["score"]["after"]) for c in told["changes"]}
    assert scores == {
        "untidy": (93, 75), "rescued": (70, 88), "clean": (93, 100), "failed": (10, 15),
    }  # fmt: skip
    assert list(scores) == ["rescued", "untidy", "clean", "failed"]  # other decisions first
    assert told["mean_change"] == pytest.approx((-18 + 18 + 7 + 5) / 4)

    code, shown = run("--rubric", rubric)
    assert code == 0
    assert "5 written" in shown and "93 → 75" in shown and "accepted → rejected" in shown
    after = files(store)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 5
    new = rescored(store, "rescued")
    assert (new.decision, new.score, new.accepted_by) == ("accepted", 88, "verifier")
    assert (new.rubric, new.reviewer, new.reviewed_at) == ("strict-3", "rescore", 3.0)
    assert [r.review.reviewer for r in store.reviewed()] == ["r"] * 5

    run("--rubric", rubric)
    assert files(store) == after  # to the byte


def test_what_a_person_should_have_looked_at_may_be_too_bad_for_that_now(
    store: Store, run: Run
) -> None:
    keep(store, "unsure", failing=2, decision="human", score=None)
    run("--rubric", strict(store.root.parent / "rubrics"))
    assert (rescored(store, "unsure").score, rescored(store, "unsure").decision) == (75, "rejected")


def test_two_rubrics_of_one_name_lie_beside_each_other(store: Store, run: Run) -> None:
    keep(store, "t")
    folder = store.root.parent / "rubrics"
    run("--rubric", strict(folder))
    run("--rubric", strict(folder, outcome={"question": "Really?", "anchors": ANCHORS}))
    assert len(list(store.root.rglob("*.rescore.strict-3-*.json"))) == 2


def test_the_judges_grades_of_the_review_count(store: Store, run: Run) -> None:
    grade = Judgement(criterion="care", model="m", median=1.0, spread=0.0)
    keep(store, "judged", judge=JudgeReport(judgements=(grade,)))
    run("--rubric", strict(store.root.parent / "rubrics"))
    new = rescored(store, "judged")
    assert (new.score, new.decision) == (75, "rejected")  # half of clean signals, half of a 1
    assert new.judge is not None


def test_what_judges_accepted_stands_while_the_rubric_finds_it_good_enough(
    store: Store, run: Run
) -> None:
    for task_id, failing in (("good", 0), ("poor", 2)):
        keep(store, task_id, verdict=Verdict(passed=None), failing=failing, accepted_by="judges")
    run("--rubric", strict(store.root.parent / "rubrics"))
    good, poor = rescored(store, "good"), rescored(store, "poor")
    assert (good.score, good.decision, good.accepted_by) == (100, "accepted", "judges")
    assert (poor.score, poor.decision, poor.accepted_by) == (75, "human", None)


def test_only_what_was_asked_for_is_scored_again(store: Store, run: Run) -> None:
    keep(store, "a-1")
    keep(store, "a-2", decision="rejected", score=60, failing=2)
    keep(store, "b-1")
    keep(store, "w", scene="web")
    rubric = strict(store.root.parent / "rubrics")

    def of(*argv: str) -> tuple[int, dict[str, int]]:
        told = json.loads(run("--rubric", rubric, "--json", "--dry-run", *argv)[1])
        return told["attempts"], told["left_out"]

    assert of() == (3, {"scene of another rubric": 1})
    assert of("--task", "a-*") == (2, {})
    assert of("--decision", "rejected") == (1, {})
    assert of("--scene", "web") == (0, {"scene of another rubric": 1})


def test_a_glob_that_matches_no_task_is_said_and_no_success(store: Store, run: Run) -> None:
    keep(store, "a")
    rubric = strict(store.root.parent / "rubrics")
    for argv in ((), ("--json",)):
        code, shown = run("--rubric", rubric, "--task", "zzz*", *argv)
        assert (code, shown.strip()) == (1, "fleet: --task: no task's id matches 'zzz*'")


def test_a_damaged_file_is_named_and_the_rest_is_done(store: Store, run: Run) -> None:
    for task_id in ("a", "b", "c"):
        keep(store, task_id)
    store.review_path("a", FIRST).write_text("{")
    store.attempt_path("b", FIRST).write_text("{")
    code, shown = run("--rubric", strict(store.root.parent / "rubrics"))
    assert code == 1
    assert "1 written" in shown and "is not a review" in shown and "is not a trajectory" in shown
    assert rescored(store, "c").score == 100


def test_a_bad_rubric_says_what_is_wrong_before_anything_is_read(store: Store, run: Run) -> None:
    keep(store, "t")
    folder = store.root.parent / "rubrics"
    before = files(store)
    for path, why in (
        (strict(folder, dimensions=[]), "dimensions"),
        (folder / "absent.yaml", "absent.yaml"),
    ):
        code, shown = run("--rubric", path)
        assert (code, why in shown) == (78, True), shown
    assert files(store) == before


def test_a_folder_goes_before_the_fleets_own_rubrics(store: Store, run: Run) -> None:
    keep(store, "c", failing=2)
    keep(store, "w", scene="web")
    folder = strict(store.root.parent / "rubrics").parent
    assert run("--rubric", folder)[0] == 0
    assert rescored(store, "c").rubric == "strict-3"
    assert rescored(store, "w").rubric == rubric_for("web").label
    strict(folder, "nosuchscene")
    code, shown = run("--rubric", folder)
    assert (code, "nosuchscene.yaml" in shown) == (78, True), shown


def test_a_try_is_measured_against_the_other_first_tries_of_its_task(
    store: Store, run: Run
) -> None:
    care = {"id": "speed", "title": "Speed", "weight": 1, "question": "Fast?", "anchors": ANCHORS,
            "signals": {"efficiency": 1}}  # fmt: skip
    tidy = care | {"id": "tidy", "weight": 0.001, "signals": {"malformed": 1}}
    task = Task.model_validate(
        {"task_id": "t", "task_type": "code", "description": "Do it.", "samples": 2}
    )
    for sample, steps in ((0, 2), (1, 4)):
        trajectory = made(
            "t", FIRST.replace("s0", f"s{sample}"), revision=1, sample=sample, verdict=PASSED,
            assignment=Assignment(task=task, sample=sample),
            steps=tuple(step(n, True) for n in range(1, steps + 1)),
        )  # fmt: skip
        store.write_attempt(trajectory)
        store.write_review(review_of(trajectory))
    run("--rubric", strict(store.root.parent / "rubrics", dimensions=[care, tidy]))
    scores = [
        Review.model_validate_json(path.read_bytes()).score
        for path in sorted(store.root.rglob("*.rescore.*.json"))
    ]
    assert scores == [100, 75]


@often
@given(st.sampled_from([PASSED, FAILED]), st.integers(0, 4), st.integers(1, 2))
def test_the_rubric_a_review_was_made_by_says_the_same_again(
    verdict: Verdict, failing: int, revision: int
) -> None:
    task = Task.model_validate(
        {"task_id": "t", "task_type": "code", "description": "Do it.", "max_iterations": 2,
         "checks": [{"type": "stdout", "expected": "1"}]}
    )  # fmt: skip
    trajectory = made(
        "t", FIRST, revision=revision, verdict=verdict,
        assignment=Assignment(task=task, revision=revision),
        steps=tuple(step(n, n > failing) for n in range(1, 5)),
    )  # fmt: skip
    first = review(trajectory, RULES, reviewer="r", now=5.0).review
    with TemporaryDirectory() as folder:
        again = reviewed_by(RULES.rubric, trajectory, first, Tries(Store(Path(folder))))
    same = ("score", "decision", "accepted_by", "dimensions", "signals", "rubric", "reviewed_at")
    assert [getattr(again, name) for name in same] == [getattr(first, name) for name in same]
