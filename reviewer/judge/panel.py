"""Who grades an attempt, and whether two of them agree that the task was done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from common.llm.types import ChatModel
from common.review import JudgeReport
from common.trajectory import Agent, Trajectory, Usage
from reviewer.judge.asking import AT_ONCE, Asked, Heard, Judge, Kept
from reviewer.judge.names import kin
from reviewer.judge.prompt import PROMPT_SHA256, Question, graded, outcome
from reviewer.judge.tally import is_firm, says_done
from reviewer.rubric import OUTCOME, Rubric

_LONGEST = 400  # characters of what is missing


class Panel:
    """The judges of a fleet, in the order in which they are asked."""

    def __init__(
        self,
        models: Sequence[ChatModel],
        *,
        votes: int,
        deadline: float,
        heard: Heard = lambda _: None,
    ) -> None:
        """``votes``: rounds of each question. ``deadline``: seconds of one call."""
        if not models:
            raise ValueError("a panel needs at least one model")
        slots = asyncio.Semaphore(AT_ONCE)
        self._kept = Kept()
        self._judges = [
            Judge(
                one, votes=votes, deadline=deadline, heard=heard, slots=slots, kept=self._kept
            )
            for one in models
        ]  # fmt: skip

    async def grade(self, trajectory: Trajectory, rubric: Rubric) -> JudgeReport:
        """Grade the dimensions in which judges have a share, by one judge.

        Raises `ModelUnavailable` and `ModelMisconfigured`; whoever asks again pays only for the
        votes that are missing. What a budget does not pay for is `missing` in the report.
        """
        questions = graded(rubric)
        if not questions:
            return JudgeReport()
        return await self._report(trajectory, questions, self._choose(trajectory.agent, 1))

    async def outcome(self, trajectory: Trajectory, rubric: Rubric) -> JudgeReport:
        """Have two different judges say whether the task was done; fewer, if there are fewer.

        Raises as `grade` does.
        """
        return await self._report(trajectory, (outcome(rubric),), self._choose(trajectory.agent, 2))

    def _choose(self, agent: Agent, most: int) -> list[Judge]:
        """Return judges of different models that did not act; who acted only if alone."""
        acted = kin(agent.model or "")
        different: dict[str, Judge] = {}
        for judge in self._judges:
            different.setdefault(kin(judge.model.model), judge)
        others = [judge for name, judge in different.items() if name != acted]
        return others[:most] or self._judges[:1]

    async def _report(
        self, trajectory: Trajectory, questions: Sequence[Question], judges: Sequence[Judge]
    ) -> JudgeReport:
        # Not a task group: one judge that is away is no reason to cancel what another was paid for.
        asked = await asyncio.gather(
            *(one.ask(trajectory, questions) for one in judges), return_exceptions=True
        )
        answers: list[Asked] = []
        for one in asked:
            if isinstance(one, BaseException):
                raise one
            answers.append(one)
        self._kept.drop(trajectory)
        return JudgeReport(
            judgements=tuple(one for answer in answers for one in answer.judgements),
            own_model=any(judge.is_same_as(trajectory.agent.model) for judge in judges),
            usage=sum((answer.usage for answer in answers), Usage()),
            prompt_sha256=PROMPT_SHA256,
            missing=_missing(questions, answers),
        )


def agreed(report: JudgeReport) -> bool:
    """Do two different models, none of which acted, say that the task was done?

    Each with a median of 4 or more, which takes a vote in most rounds, and rounds at most one level
    apart.
    """
    said = report.of(OUTCOME)
    models = {kin(one.model.partition(":")[2] or one.model) for one in said}
    return (
        report.missing is None
        and not report.own_model
        and len(models) >= 2
        and all(says_done(one) and is_firm(one) for one in said)
    )


def _missing(questions: Sequence[Question], answers: Sequence[Asked]) -> str | None:
    """Say why there is not a grade for every question; None if there is."""
    for answer in answers:
        if answer.spent is not None:
            return f"the budget is spent: {answer.spent}"
    said = [one for answer in answers for one in answer.judgements]
    there = {one.criterion for one in said if one.median is not None}
    wanting = [one.criterion for one in questions if one.criterion not in there]
    if not wanting:
        return None
    votes = [vote for one in said if one.criterion in wanting for vote in one.votes]
    why = next((vote.invalid for vote in votes if vote.invalid), "unknown by what was shown")
    return f"no grade for {', '.join(wanting)}: {why}"[:_LONGEST]
