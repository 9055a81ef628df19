"""Scores: the verifier decides on the half, the rubric on the place in it, a judge on neither."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.groups import Try
from common.review import Dimension, Judgement, JudgeReport
from common.task import SceneName
from common.trajectory import Step, Trajectory, Verdict
from reviewer.rubric import rubric_for
from reviewer.scoring import Assessment, assess
from tests.reviewer.test_signals import STEPS, made_of, step, tried

often = settings(max_examples=80, deadline=None)

PASSED, FAILED = Verdict(passed=True, reward=1.0), Verdict(passed=False, reward=0.0)
RUBRICS = {scene.value: rubric_for(scene.value) for scene in SceneName}
CODE = RUBRICS["code"]
IDS = sorted({d.id for rubric in RUBRICS.values() for d in rubric.dimensions} | {"outcome", "none"})
REPORTS = st.none() | st.builds(
    JudgeReport,
    judgements=st.lists(
        st.builds(
            Judgement,
            criterion=st.sampled_from(IDS),
            model=st.sampled_from(["a", "b", "c"]),
            median=st.none() | st.floats(1, 5),
            spread=st.none() | st.floats(0, 4),
        ),
        max_size=12,
    ).map(tuple),
    own_model=st.booleans(),
    missing=st.none() | st.just("budget"),
)
SIBLINGS = st.lists(st.builds(tried, st.none() | st.booleans(), st.integers(0, 9)), max_size=3)


def said(*grades: tuple[str, float | None], spread: float = 0.0, model: str = "j") -> JudgeReport:
    return JudgeReport(
        judgements=tuple(
            Judgement(criterion=criterion, model=model, median=median, spread=spread)
            for criterion, median in grades
        )
    )


def everywhere(grade: float) -> JudgeReport:
    return said(*((d.id, grade) for d in CODE.dimensions), ("outcome", grade))


def dimension(found: Assessment, name: str) -> Dimension:
    return next(one for one in found.dimensions if one.id == name)


def ended(verdict: Verdict, *steps: Step, malformed: int = 0) -> Trajectory:
    return made_of(*steps, verdict=verdict, malformed_answers=malformed)


def points(verdict: Verdict, *steps: Step, malformed: int = 0) -> int:
    score = assess(ended(verdict, *steps, malformed=malformed), CODE).score
    assert score is not None
    return score


# -- verifier first -------------------------------------------------------------------------------


@often
@given(
    scene=st.sampled_from(sorted(RUBRICS)), steps=STEPS, malformed=st.integers(0, 9),
    reward=st.none() | st.floats(0, 1), report=REPORTS, siblings=SIBLINGS,
)  # fmt: skip
def test_no_judge_moves_an_attempt_from_one_half_to_the_other(
    scene: str, steps: list[Step], malformed: int, reward: float | None,
    report: JudgeReport | None, siblings: list[Try],
) -> None:  # fmt: skip
    def score(passed: bool | None, report: JudgeReport | None) -> int | None:
        trajectory = ended(Verdict(passed=passed, reward=reward), *steps, malformed=malformed)
        found = assess(trajectory, RUBRICS[scene], siblings=siblings, report=report)
        assert found.rubric is not None
        assert 0 <= found.rubric <= 1
        return found.score

    failed, passed = score(False, report), score(True, report)
    assert failed is not None and passed is not None
    assert 0 <= failed <= 49 < 50 <= passed <= 100
    assert failed == score(False, None), "a judge is not heard on what the checks refused"
    assert score(None, report) is None


@often
@given(steps=STEPS, report=REPORTS, rewards=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_more_of_the_checks_never_scores_less(
    steps: list[Step], report: JudgeReport | None, rewards: tuple[float, float]
) -> None:
    less, more = (
        assess(ended(Verdict(passed=False, reward=reward), *steps), CODE, report=report).score
        for reward in sorted(rewards)
    )
    assert less is not None and more is not None
    assert less <= more


@often
@given(scene=st.sampled_from(sorted(RUBRICS)), steps=STEPS, report=REPORTS, siblings=SIBLINGS)
def test_weights_of_signals_and_judges_add_up_to_the_rubric(
    scene: str, steps: list[Step], report: JudgeReport | None, siblings: list[Try]
) -> None:
    rubric = RUBRICS[scene]
    found = assess(ended(PASSED, *steps), rubric, siblings=siblings, report=report)
    counted = {d.id: d for d in found.dimensions if d.points is not None}
    whole = sum(d.weight for d in counted.values())
    by_judges = 0.0
    worth = sum(signal.weight * signal.points for signal in found.signals)
    for spec in rubric.dimensions:
        of = counted.get(spec.id)
        if of is not None and of.judge is not None:
            share = of.weight / whole * (spec.judge if of.signals is not None else 1.0)
            by_judges += share
            worth += share * (of.judge - 1) / 4
    assert sum(signal.weight for signal in found.signals) == pytest.approx(1 - by_judges)
    assert found.rubric == pytest.approx(worth)


# -- the rubric of code ---------------------------------------------------------------------------


def test_a_clean_success_has_full_marks_and_each_fault_costs() -> None:
    first, second = step(1, "run_python", code="a"), step(2, "run_python", code="b")
    clean = points(PASSED, first, second)
    assert clean == points(PASSED) == 100
    own = step(1, "write_file", path="solution.py", content="x")
    assert points(PASSED, own, second) == clean, "a name of its own choice costs nothing"
    assert 95 <= points(PASSED, step(1, path="solution.py"), second) < clean, "a guess a little"
    again = step(2, "run_python", code="a")
    assert points(PASSED, first, again) < clean
    assert points(PASSED, first, second, malformed=1) < clean
    failed = step(1, "run_python", success=False, code="a")
    recovered = points(PASSED, failed, second)
    abandoned = points(PASSED, first, step(2, "run_shell", success=False, command="b"))
    assert abandoned < CODE_THRESHOLD <= recovered < clean


def test_padding_does_not_make_up_for_failures() -> None:
    wild = [step(n, "run_python", success=n == 4, code=str(n)) for n in range(1, 5)]

    def padded(idle: int) -> int:
        more = (step(4 + n, "run_python", f"{n}", code=f"print({n})") for n in range(1, idle + 1))
        return points(PASSED, *wild, *more)

    assert 80 <= padded(0) <= padded(5) == padded(40) < 90
    recovered = points(PASSED, *wild[2:])
    assert padded(40) <= recovered + 2, "four steps for one failure are worth as much"


CODE_THRESHOLD = 80
"""What tasks ask for where they do not say."""


def test_partly_right_beats_wholly_wrong_and_no_manners_make_up_for_it() -> None:
    clean, wild = step(1, "run_python", code="a"), step(1, "run_python", success=False, code="a")
    wrong, half = FAILED, Verdict(passed=False, reward=0.5)
    assert points(wrong, wild) < points(wrong, clean) == 15
    assert points(wrong, clean) < points(half, wild)
    assert points(Verdict(passed=False, reward=1.0), clean) == 49
    assert points(Verdict(passed=False, reward=None), clean) == 15


def test_who_took_twice_the_steps_of_a_sibling_has_a_little_less() -> None:
    trajectory = ended(PASSED, *(step(n, "run_python", code=str(n)) for n in range(1, 5)))
    fast = assess(trajectory, CODE, siblings=[tried(True, 2)]).score
    assert fast is not None
    assert 95 <= fast < 100


# -- judges ---------------------------------------------------------------------------------------


def test_a_dimension_blends_signals_and_judge_by_its_share() -> None:
    steps = [step(1, "run_python", success=False, code="a"), step(2, "run_python", code="b")]
    trajectory = ended(PASSED, *steps)
    alone = assess(trajectory, CODE)
    assert dimension(alone, "reasoning").points is None, "only a judge could say"
    assert dimension(alone, "error_handling").points == pytest.approx(0.71)
    report = said(("error_handling", 2), ("reasoning", 4))
    found = assess(trajectory, CODE, report=report)
    errors, reasoning = dimension(found, "error_handling"), dimension(found, "reasoning")
    assert errors.signals == pytest.approx(0.71)
    assert errors.judge == 2
    assert errors.points == pytest.approx(0.8 * 0.71 + 0.2 * 0.25)
    assert (reasoning.signals, reasoning.judge, reasoning.points) == (None, 4, 0.75)
    assert dimension(found, "tool_usage") == dimension(alone, "tool_usage")
    assert found.rubric == pytest.approx(
        (0.25 * 1 + 0.35 * (0.8 * 0.71 + 0.05) + 0.2 * 0.75) / (0.25 + 0.35 + 0.2)
    )


def test_a_judge_ranks_what_passed() -> None:
    trajectory = ended(PASSED, step(1, "run_python", code="a"))
    scores = [assess(trajectory, CODE, report=everywhere(grade)).score for grade in (1, 2, 3, 4, 5)]
    assert scores == sorted(set(scores), key=lambda s: s or 0)
    assert scores[-1] == 100


@pytest.mark.parametrize(
    "report",
    [
        JudgeReport(),
        said(("reasoning", None)),
        said(("reasoning", 1), spread=1.5),
        said(("outcome", 1), ("nonsense", 1)),
    ],
    ids=["silence", "unknown", "votes apart", "another question"],
)
def test_what_is_no_grade_counts_for_nothing(report: JudgeReport) -> None:
    trajectory = ended(PASSED, step(1, "run_python", code="a"))
    assert assess(trajectory, CODE, report=report) == assess(trajectory, CODE)


def test_what_nobody_verified_has_a_rubric_and_no_score() -> None:
    found = assess(ended(Verdict(passed=None), step(1)), CODE, report=everywhere(5))
    assert found.rubric is not None
    assert found.score is None


# -- speed ----------------------------------------------------------------------------------------


def test_a_thousand_attempts_of_ten_steps_are_assessed_in_a_moment() -> None:
    steps = [
        step(n, "read_file", f"file-{n + 1}.txt holds: " + "some text " * 50, path=f"file-{n}.txt")
        for n in range(1, 11)
    ]
    trajectory = ended(PASSED, *steps)
    began = time.perf_counter()
    for _ in range(1000):
        assess(trajectory, CODE)
    assert time.perf_counter() - began < 2.5, "about 0.3 s on a machine that does nothing else"
