"""When people are asked, what they are asked, and what judges may accept without them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from common.approvals import refusal_key
from common.review import Group, Judgement, JudgeReport, Proposal
from common.revision import revised
from common.task import Assignment, Change, RevisionScore
from common.trajectory import Trajectory, Verdict
from tests.helpers import task
from tests.reviewer.endings import FAILED, PASSED, RULES, ended, judged, of, step

EARLY = replace(RULES, ask_people="early")
LATE = replace(RULES, ask_people="late", approval_ttl=60.0)
WORDING = Proposal(
    field="task.description", before="Print 1.", after="Print the digit 1.", reason="clearer",
    evidence=(1,), by="some-model", claimed="green",
)  # fmt: skip
CHECKS = Proposal(
    field="task.checks", before=judged().model_dump(mode="json")["checks"], after=[],
    reason="too strict", evidence=(1,), by="some-model", claimed="green",
)  # fmt: skip


def again(reward: float = 0.0) -> Trajectory:
    """A second revision that failed as the first did."""
    first = RevisionScore(
        revision=1, attempt_id="a1", score=10, passed=False, reward=reward, rubric=1.0
    )
    return ended(FAILED, assignment=Assignment(task=judged(), revision=2, history=(first,)))


def test_what_needs_nobody_is_tried_first_and_people_are_asked_when_it_did_not_help() -> None:
    first = of(ended(FAILED), LATE, suggestions=(WORDING,))
    assert (first.review.decision, first.wait) == ("iterate", None)
    assert [p.level for p in first.review.proposals if p.by == "some-model"] == ["yellow"]
    second = of(again(), LATE, suggestions=(WORDING,))
    assert (second.review.decision, second.next) == ("waiting", None)
    assert second.wait is not None
    [asked] = second.wait.approvals
    assert second.review.approvals == (asked.approval_id,)
    assert asked.options == ("Print the digit 1.", "Print 1.")
    assert second.wait.expires_at == 65.0
    # The green ones go with what people decide, and both fit the task together.
    assert second.wait.greens == second.review.changes != ()
    chosen = Change(field=WORDING.field, before=WORDING.before, after=WORDING.after,
                    reason="", level="yellow", by=("ana",))  # fmt: skip
    later = revised(second.wait.before, (*second.wait.greens, chosen), second.wait.history)
    assert (later.revision, later.task.description) == (3, "Print the digit 1.")
    assert [h.revision for h in later.history] == [1, 2]


def test_early_asks_at_once_and_never_only_writes_down() -> None:
    assert of(ended(FAILED), EARLY, suggestions=(WORDING,)).review.decision == "waiting"
    silent = of(again(), RULES, suggestions=(WORDING, CHECKS))
    assert (silent.review.decision, silent.wait) == ("iterate", None)
    assert [p.level for p in silent.review.proposals if p.by == "some-model"] == ["yellow", "red"]


def test_the_level_a_model_claims_changes_nothing() -> None:
    for claimed in ("green", "yellow", "red", None):
        proposal = CHECKS.model_copy(update={"claimed": claimed})
        got = of(ended(FAILED), EARLY, suggestions=(proposal,))
        assert got.next is None and got.wait is not None
        assert [a.proposal.level for a in got.wait.approvals] == ["red"]


def test_the_last_revision_asks_nobody() -> None:
    last = ended(FAILED, assignment=Assignment(task=judged(max_iterations=1)))
    got = of(last, EARLY, suggestions=(WORDING,))
    assert (got.review.decision, got.wait) == ("rejected", None)


def test_two_proposals_for_one_field_are_one_question() -> None:
    other = WORDING.model_copy(update={"after": "Print one."})
    inner = Proposal(field="task.sampling", before=None, after={}, reason="", evidence=(1,))
    got = of(ended(FAILED), EARLY, suggestions=(WORDING, other, inner))
    assert got.wait is not None and len(got.wait.approvals) == 1
    refused = [p for p in got.review.proposals if p.refused]
    assert {p.field for p in refused} == {"task.description", "task.sampling"}


def test_what_was_meant_for_another_value_is_refused_and_asked_of_nobody() -> None:
    stale = WORDING.model_copy(update={"before": "Print 2."})
    got = of(ended(FAILED), EARLY, suggestions=(stale,))
    assert got.wait is None
    assert got.review.decision == "iterate"
    assert [bool(p.refused) for p in got.review.proposals if p.by == "some-model"] == [True]


def test_the_same_review_twice_asks_for_the_same_approvals() -> None:
    one, other = (of(again(), LATE, suggestions=(WORDING, CHECKS)) for _ in range(2))
    assert one == other
    assert len(set(one.review.approvals)) == 2


def test_a_spent_budget_ends_it() -> None:
    got = of(ended(FAILED), EARLY, suggestions=(WORDING,), spent="nothing is left")
    assert (got.review.decision, got.wait, got.next) == ("rejected", None, None)
    assert "nothing is left" in got.review.reason


def test_the_best_attempt_is_remembered_though_later_ones_are_worse() -> None:
    assert of(again(reward=0.5)).review.best_attempt == "a1"
    better = ended(
        Verdict(passed=False, reward=0.9), assignment=again().assignment, attempt_id="a2"
    )
    assert of(better).review.best_attempt == "a2"
    assert of(ended(PASSED, attempt_id="a3")).review.best_attempt == "a3"


# -- judges ---------------------------------------------------------------------------------------


def outcome(*medians: float | None, spread: float = 0.0) -> JudgeReport:
    return JudgeReport(
        judgements=tuple(
            Judgement(criterion="outcome", model=f"judge{n}", median=median, spread=spread)
            for n, median in enumerate(medians)
        )
    )


def unverified(**fields: Any) -> Trajectory:
    return ended(Verdict(passed=None), assignment=Assignment(task=task(**fields)))


@pytest.mark.parametrize(
    ("report", "trusted", "accepted"),
    [
        (outcome(5, 4), True, True),
        (outcome(5, 4), False, False),  # not known to agree with any verifier
        (outcome(5), True, False),  # alone
        (outcome(5, 3), True, False),
        (outcome(5, None), True, False),
        (outcome(5, 5, spread=2), True, False),
        (JudgeReport(missing="the budget is spent"), True, False),
        (None, True, False),
    ],
)
def test_only_two_judges_that_agree_and_are_trusted_accept_what_nobody_verified(
    report: JudgeReport | None, trusted: bool, accepted: bool
) -> None:
    said = of(unverified(), report=report, trusted=trusted).review
    assert (said.decision == "accepted") is accepted
    assert said.accepted_by == ("judges" if accepted else None)
    assert (said.score is None) is not accepted
    if accepted:
        assert said.second_look == "accepted by judges alone"
    else:
        assert said.decision == "human"


def test_no_judge_saves_or_accepts_what_a_check_failed() -> None:
    glowing = outcome(5, 5)
    said = of(ended(FAILED), report=glowing, trusted=True).review
    assert (said.decision, said.accepted_by) == ("iterate", None)
    assert said.score is not None and said.score <= 49


def test_a_judge_that_cannot_make_up_its_mind_calls_for_a_second_look() -> None:
    torn = JudgeReport(
        judgements=(Judgement(criterion="reasoning", model="j", median=3, spread=3),)
    )
    poor = JudgeReport(
        judgements=(Judgement(criterion="reasoning", model="j", median=1, spread=0),)
    )
    for report, why in ((torn, "make up its mind"), (poor, "finds reasoning poor")):
        said = of(ended(PASSED), report=report).review
        assert said.second_look is not None and why in said.second_look


def test_a_group_is_in_the_review_of_each_first_try() -> None:
    group = Group(size=2, passed=1, spread=1.0, best="a", attempts=("a", "b"))
    assert of(ended(PASSED, steps=(step(1),)), group=group).review.group == group


def test_where_people_are_asked_anyway_advice_that_fits_goes_before_what_is_ready_made() -> None:
    advice = Proposal(field="hints", before=[], after=["Use one print."], reason="", evidence=(1,),
                      by="some-model")  # fmt: skip
    got = of(ended(FAILED), EARLY, suggestions=(advice,))
    assert got.wait is not None
    assert [a.proposal.after for a in got.wait.approvals] == [["Use one print."]]
    late = of(ended(FAILED), LATE, suggestions=(advice,))
    assert late.next is not None and late.next.hints != ("Use one print.",)


def test_a_model_is_asked_also_when_the_rules_have_nothing_left() -> None:
    warm = judged(sampling={"temperature": 1.2})
    first = ended(FAILED, assignment=Assignment(task=warm))
    hints = of(first).review.changes[0].after
    assert isinstance(hints, list)
    told = Assignment(task=warm, hints=tuple(str(h) for h in hints))
    got = of(ended(FAILED, assignment=told))
    assert (got.review.decision, got.again) == ("rejected", True)
    wording = of(ended(FAILED, assignment=told), LATE, suggestions=(WORDING,))
    assert wording.review.decision == "waiting"
    assert not of(ended(PASSED)).again


def test_what_people_refused_is_not_asked_again() -> None:
    key = refusal_key(CHECKS.field, CHECKS.after)
    before = again().assignment.model_copy(update={"refused": (key,)})
    got = of(ended(FAILED, assignment=before), EARLY, suggestions=(CHECKS, WORDING))
    assert got.wait is not None
    assert [a.proposal.field for a in got.wait.approvals] == [WORDING.field]
    assert got.wait.before.refused == (key,)
