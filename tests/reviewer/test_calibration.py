"""How far a judge agrees with verifiers: what is measured, kept, and trusted afterwards."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from common.llm.types import ModelMisconfigured, ModelRefused, ModelUnavailable
from common.store import Store, StoreError
from common.task import Assignment, Task
from common.trajectory import Agent, EnvironmentInfo, Trajectory, Verdict
from reviewer.judge import asking, calibration
from reviewer.judge.asking import Judge
from reviewer.judge.calibration import Calibration, Calibrations, calibrate
from reviewer.judge.candidates import candidates, sample
from tests.exporters.attempts import review_of
from tests.helpers import eventually
from tests.reviewer.judges import RUBRIC, Model, acted, grade, other_rubric, parted

PASSED = Verdict(passed=True, reward=1.0)
FAILED = Verdict(passed=False, reward=0.0)


def stored(store: Store, number: int, *, passed: bool | None, says: int, **fields: Any) -> None:
    """Keep an attempt that shows what the judge below will say of it."""
    task = Task(task_id=f"t-{number}", task_type=fields.pop("scene", "code"), description="Do.")
    trajectory = acted(
        f"grade {says}",
        task_id=task.task_id,
        attempt_id="r1-s0-1700000000000-0-d1-aaaaaaaa",
        assignment=Assignment(task=task),
        revision=1,
        verdict=PASSED if passed else FAILED if passed is False else Verdict(passed=None),
        **fields,
    )
    store.write_attempt(trajectory)
    store.write_review(review_of(trajectory))


def as_shown(messages: list[dict[str, Any]], _: int) -> Any:
    """Say what the attempt shows; 0 is unknown, 9 nothing that could be read."""
    rows = [json.loads(line) for line in parted(messages)[1]]
    said = int(next(row["observation"] for row in rows if "step" in row).split()[1])
    if said == 9:
        return "no idea"
    return grade(said) if said else grade(None, unknown=True)


def judge(model: Model | None = None, *, votes: int = 1) -> Judge:
    return Judge(model or Model(as_shown), votes=votes, deadline=5)


def fill(store: Store, *rows: tuple[bool, int]) -> None:
    for number, (passed, says) in enumerate(rows):
        stored(store, number, passed=passed, says=says)


async def measure(store: Store, one: Judge | None = None, *, limit: int = 100) -> Calibration:
    one = one or judge()
    chosen = sample(candidates(store, embedded=False), limit=limit, judge=one)
    return await calibrate(one, "code", RUBRIC, chosen, store)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


async def test_a_calibration_is_what_counting_by_hand_gives(store: Store) -> None:
    passed = [(True, 5)] * 5 + [(True, 4)] * 2 + [(True, 2)]
    failed = [(False, 1)] * 4 + [(False, 3)] * 2 + [(False, 5)] * 2
    fill(store, *passed, *failed, (True, 0), (False, 0), (False, 9))
    found = await measure(store)
    assert (found.n, found.unknown, found.invalid) == (16, 2, 1)
    confusion = found.confusion
    assert (confusion.done_passed, confusion.undone_passed) == (7, 1)
    assert (confusion.done_failed, confusion.undone_failed) == (2, 6)
    assert found.balanced_accuracy == pytest.approx((7 / 8 + 6 / 8) / 2)
    # 13/16 agree; by chance 9/16 · 8/16 + 7/16 · 8/16 = 1/2
    assert found.kappa == pytest.approx((13 / 16 - 1 / 2) / (1 / 2))
    # 5 against (1,1,1,1,3,3,5,5): 6 + 2/2; 4: 6; 2: 4
    assert found.auc == pytest.approx((5 * 7 + 2 * 6 + 4) / 64)
    assert (found.judge, found.rubric_sha256, found.own) == ("p:judge", RUBRIC.sha256, 0)


async def test_the_judge_is_not_told_the_verdict(store: Store) -> None:
    fill(store, (True, 5), (False, 5))
    model = Model(as_shown)
    await measure(store, judge(model))
    shown = {"\n".join(parted(messages)[1]) for messages, _ in model.asked}
    assert len(model.asked) == 2
    assert len(shown) == 1


@pytest.mark.parametrize(
    "rows",
    [[(True, 5)] * 12, [(False, 1)] * 12, [(True, 5), (False, 1)] * 4],
    ids=["all passed", "none passed", "too few"],
)
async def test_agreement_that_is_not_defined_is_null_and_trusts_nobody(
    store: Store, rows: list[tuple[bool, int]]
) -> None:
    fill(store, *rows)
    calibrations = Calibrations(store.root)
    calibrations.write(await measure(store))
    found = calibrations.find("code", "p:judge", RUBRIC)
    assert found is not None
    assert found.kappa is None
    assert not calibrations.trusted("code", "p:judge", RUBRIC, floor=0, votes=1)
    objection = calibrations.objection("code", "p:judge", RUBRIC, floor=0, votes=1)
    assert "not defined" in (objection or "")


async def test_a_judge_that_mostly_abstains_is_not_trusted(store: Store) -> None:
    fill(store, *[(True, 5), (False, 1)] * 6, *[(True, 0), (False, 9)] * 7)
    found = await measure(store)
    assert (found.n, found.kappa, found.unknown, found.invalid) == (12, 1, 7, 7)
    calibrations = Calibrations(store.root)
    calibrations.write(found)
    objection = calibrations.objection("code", "p:judge", RUBRIC, floor=0, votes=1)
    assert objection == "it gave a grade to only 12 of 26 attempts"


async def test_what_a_stand_in_answered_trusts_nobody_and_counts_for_no_other(
    store: Store,
) -> None:
    fill(store, *[(True, 5), (False, 1)] * 6)
    fake = Model(as_shown)
    fake.source = "standin"
    calibrations = Calibrations(store.root)
    calibrations.write(await measure(store, judge(fake)))
    objection = calibrations.objection("code", "p:judge", RUBRIC, floor=0, votes=1)
    assert "stand-in" in (objection or "")
    real = Model(as_shown)
    calibrations.write(await measure(store, judge(real)))
    assert len(real.asked) == 12
    assert calibrations.trusted("code", "p:judge", RUBRIC, floor=0.6, votes=1)
    elsewhere = Model(as_shown)
    await measure(store, Judge(elsewhere, votes=1, deadline=5, endpoint="http://other/v1"))
    assert len(elsewhere.asked) == 12


async def test_an_attempt_that_the_provider_refuses_is_an_answer_and_not_the_end(
    store: Store,
) -> None:
    fill(store, *[(True, 5), (False, 1)] * 6)
    calls = itertools.count(1)

    def says(messages: list[dict[str, Any]], seed: int) -> Any:
        if next(calls) == 5:
            return ModelRefused("content filter")
        return as_shown(messages, seed)

    model = Model(says)
    found = await measure(store, judge(model))
    assert (found.n, found.invalid) == (11, 1)
    path = next((store.root / "calibrations" / "answers").iterdir())
    assert "the judge refused: content filter" in path.read_text()
    again = Model(as_shown)
    assert (await measure(store, judge(again))).invalid == 1
    assert again.asked == []


async def test_a_judge_is_trusted_for_the_scene_rubric_and_questions_it_was_measured_with(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, *[(True, 5), (False, 1)] * 6, (False, 4))
    calibrations = Calibrations(store.root)
    assert not calibrations.trusted("code", "p:judge", RUBRIC, floor=0, votes=1)
    found = await measure(store)
    calibrations.write(found)
    assert found.kappa is not None
    assert 0.8 < found.kappa < 0.9
    assert calibrations.all() == [found]
    assert calibrations.trusted("code", "p:judge", RUBRIC, floor=0.6, votes=1)
    assert calibrations.trusted("code", "p:judge", RUBRIC, floor=found.kappa, votes=1)
    assert not calibrations.trusted("code", "p:judge", RUBRIC, floor=0.9, votes=1)
    assert not calibrations.trusted("code", "q:judge", RUBRIC, floor=0.6, votes=1)
    assert not calibrations.trusted("web", "p:judge", RUBRIC, floor=0.6, votes=1)
    assert not calibrations.trusted("code", "p:judge", other_rubric(), floor=0.6, votes=1)
    assert not calibrations.trusted("code", "p:judge", RUBRIC, floor=0.6, votes=5)
    objection = calibrations.objection("code", "p:judge", RUBRIC, floor=0.6, votes=3)
    assert objection == "measured with FLEET_JUDGE_VOTES=1, and now it is 3"
    assert calibrations.find("code", "p:judge", RUBRIC) == found
    monkeypatch.setattr(calibration, "PROMPT_SHA256", "of other words")
    assert calibrations.find("code", "p:judge", RUBRIC) is None


async def test_a_calibration_that_cannot_be_kept_says_what_to_do(store: Store) -> None:
    fill(store, (True, 5), (False, 1))
    found = await measure(store)
    elsewhere = Store(store.root / "elsewhere")
    elsewhere.root.mkdir()
    (elsewhere.root / "calibrations").write_text("in the way")
    with pytest.raises(StoreError, match="move it, or set FLEET_OUTPUT elsewhere"):
        Calibrations(elsewhere.root).write(found)


async def test_a_calibration_that_cannot_be_read_trusts_nobody(store: Store) -> None:
    calibrations = Calibrations(store.root)
    path = calibrations.path("code", "p:org/judge")
    assert path.parent == store.root / "calibrations"  # whatever a model is called
    path.parent.mkdir()
    path.write_bytes(b'{"kappa": 1')
    assert calibrations.find("code", "p:org/judge", RUBRIC) is None
    assert calibrations.all() == []


async def test_what_was_answered_is_never_asked_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, *[(True, 5), (False, 1)] * 6)
    model = Model()

    def says(messages: list[dict[str, Any]], seed: int) -> Any:
        if len(model.asked) > 10:  # eight are under way at once
            return ModelUnavailable("gone")
        return as_shown(messages, seed)

    model._says = says
    monkeypatch.setattr(asking, "_PAUSES", (0.0, 0.0))
    with pytest.raises(ModelUnavailable):
        await measure(store, judge(model))
    path = next((store.root / "calibrations" / "answers").iterdir())
    kept = len(path.read_bytes().splitlines())
    assert 0 < kept < 12
    path.write_bytes(path.read_bytes()[:-20])  # killed in the middle of a line
    again = Model(as_shown)
    found = await measure(store, judge(again))
    assert len(again.asked) == 12 - kept + 1
    assert (found.n, found.kappa) == (12, 1)
    once_more = Model(as_shown)
    assert (await measure(store, judge(once_more))).kappa == 1
    assert once_more.asked == []
    await measure(store, judge(once_more, votes=2))  # other rounds are another question
    assert len(once_more.asked) == 24


async def test_a_call_that_fails_takes_none_of_those_under_way_with_it(store: Store) -> None:
    fill(store, *[(True, 5), (False, 1)] * 6)
    answered: list[int] = []

    def says(messages: list[dict[str, Any]], seed: int) -> Any:
        answered.append(seed)
        return ModelMisconfigured("401") if len(answered) == 1 else as_shown(messages, seed)

    model = Model(says)
    model.held = asyncio.Event()
    measuring = asyncio.create_task(measure(store, judge(model)))
    await eventually(lambda: len(model.asked) == 8 and len(answered) == 1, "the first has failed")
    model.held.set()
    with pytest.raises(ModelMisconfigured):
        await measuring
    assert (len(model.asked), model.cancelled) == (8, 0)
    path = next((store.root / "calibrations" / "answers").iterdir())
    assert len(path.read_bytes().splitlines()) == 7


async def test_attempts_under_way_are_kept_when_the_command_is_ended(store: Store) -> None:
    fill(store, *[(True, 5), (False, 1)] * 6)
    model = Model(as_shown)
    model.held = asyncio.Event()
    chosen = sample(candidates(store, embedded=False), limit=100, judge=judge(model))
    answered = asyncio.Event()
    asking = asyncio.create_task(
        calibrate(judge(model), "code", RUBRIC, chosen, store, told=answered.set)
    )
    async with asyncio.timeout(10):
        await answered.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    again = Model(as_shown)
    await measure(store, judge(again))
    assert len(again.asked) == 11


def test_the_same_attempts_are_taken_each_time_and_half_of_them_passed(store: Store) -> None:
    fill(store, *[(True, 5)] * 20, *[(False, 1)] * 6)
    found = candidates(store, embedded=False)
    chosen = sample(found, limit=10, judge=judge())
    assert sum(one.passed for one in chosen) == 5
    assert len(chosen) == 10
    assert sample(list(reversed(found)), limit=10, judge=judge()) == chosen
    assert [one.passed for one in sample(found, limit=100, judge=judge())].count(True) == 20
    assert set(chosen) <= set(sample(found, limit=12, judge=judge()))


async def test_a_judges_own_work_comes_last_and_is_counted(store: Store) -> None:
    for number in range(8):
        model = "judge" if number < 6 else "other"
        agent = Agent(kind="llm", model=model, provider="q")
        stored(store, number, passed=number % 2 == 0, says=5, agent=agent)
    chosen = sample(candidates(store, embedded=False), limit=4, judge=judge())
    assert [one.model for one in chosen] == ["other", "other", "judge", "judge"]
    assert (await measure(store, limit=4)).own == 2


def test_only_real_attempts_with_a_verdict_are_asked_about(store: Store) -> None:
    def by(source: str) -> Agent:
        return Agent.model_validate({"kind": "llm", "model": "m", "model_source": source})

    stored(store, 1, passed=True, says=5)
    stored(store, 2, passed=None, says=5)
    stored(store, 3, passed=True, says=5, agent=by("standin"))
    stored(store, 4, passed=True, says=5, environment=EnvironmentInfo(backend="standin-world"))
    stored(store, 5, passed=True, says=5, agent=by("embedded"))
    stored(store, 7, passed=True, says=5, agent=Agent(kind="oracle"))
    stored(store, 8, passed=False, says=5, agent=Agent(kind="nop"))
    store.write_attempt(_unreviewed())
    assert [one.task_id for one in candidates(store, embedded=False)] == ["t-1"]
    with_embedded = candidates(store, embedded=True)
    assert [one.task_id for one in with_embedded] == ["t-1", "t-5"]
    left_out: Counter[str] = Counter()
    candidates(store, embedded=True, left_out=left_out)
    assert left_out == {"by stand-ins": 2, "by scripted agents": 2, "without a verdict": 1}
    assert candidates(store, embedded=True, scene="web") == []


def _unreviewed() -> Trajectory:
    return acted("x", task_id="t-6", attempt_id="r1-s0-1700000000000-0-d1-aaaaaaaa")
