"""Who grades an attempt, and what their answers come to: questions × windows × rounds.

Infrastructure trouble is nobody's grade: it goes up to the caller, and the questions that are
still under way are cancelled.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Callable, Sequence
from typing import Literal

from common.llm.types import ChatModel
from common.review import Judgement, JudgeReport, Vote
from common.task import Sampling
from common.trajectory import Agent, Trajectory, Usage
from reviewer.judge.prompt import GRADE, PROMPT_SHA256, Question, graded, messages, outcome
from reviewer.judge.vote import read
from reviewer.judge.windows import Window, budget_of, windows
from reviewer.rubric import OUTCOME, Rubric

Kind = Literal["vote", "unknown", "invalid"]
Heard = Callable[[Kind], None]
"""Told what each answer was."""

_MAX_TOKENS = 4096
"""Of one answer: a few sentences, and room for a model that thinks first."""
_GOOD = 4.0
"""The level of `outcome` from which a judge says that the task was done."""
_APART = 1.0
"""The most by which the rounds of one judge may differ for its word to count alone."""


class Judge:
    """One model that grades. ``votes``: rounds; ``deadline``: seconds of one call."""

    def __init__(
        self, model: ChatModel, *, votes: int, deadline: float, heard: Heard = lambda _: None
    ) -> None:
        self.model = model
        self.votes = votes
        self._deadline = deadline
        self._heard = heard

    @property
    def name(self) -> str:
        """As in judgements and calibrations: `provider:model`."""
        return f"{self.model.provider}:{self.model.model}"

    def is_same_as(self, model: str | None) -> bool:
        """Is it the model of that name, whoever serves it?"""
        return model is not None and _kin(model) == _kin(self.model.model)

    async def ask(
        self, trajectory: Trajectory, questions: Sequence[Question]
    ) -> tuple[tuple[Judgement, ...], Usage]:
        """Return a judgement for each question, and what the calls cost.

        Raises what `ChatModel.complete` raises; the other calls are cancelled then.
        """
        # In a thread: a record of megabytes would hold up everything else for a moment.
        parts = await asyncio.to_thread(windows, trajectory, budget_of(self.model.capabilities))
        scene = trajectory.assignment.task.scene
        try:
            async with asyncio.TaskGroup() as group:
                asked = [
                    (question, [
                        group.create_task(self._rounds(question, part, scene)) for part in parts
                    ])
                    for question in questions
                ]  # fmt: skip
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        judgements, usage = [], Usage()
        for question, tasks in asked:
            answers = [task.result() for task in tasks]
            votes = tuple(vote for said, _ in answers for vote in said)
            judgements.append(_judgement(question, self.name, votes, parts))
            usage = sum((cost for _, cost in answers), usage)
        return tuple(judgements), usage

    async def _rounds(
        self, question: Question, window: Window, account: str
    ) -> tuple[list[Vote], Usage]:
        """Ask about one window in every round, one after the other: the prompt is cached then."""
        chat = messages(question, window, self.model.capabilities)
        capped = "max_tokens" in self.model.capabilities.extra_body
        votes, usage = [], Usage()
        for number in range(1, self.votes + 1):
            sampling = Sampling(
                temperature=0, seed=number, max_tokens=None if capped else _MAX_TOKENS
            )
            reply = await self.model.complete(
                chat, [GRADE], sampling, deadline=self._deadline, account=account
            )
            vote = read(reply, window, number=number)
            self._heard(kind_of(vote))
            votes.append(vote)
            usage += reply.usage
        return votes, usage


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
        self._judges = [Judge(one, votes=votes, deadline=deadline, heard=heard) for one in models]

    async def grade(self, trajectory: Trajectory, rubric: Rubric) -> JudgeReport:
        """Grade the dimensions in which judges have a share, by one judge."""
        questions = graded(rubric)
        if not questions:
            return JudgeReport()
        return await self._report(trajectory, questions, self._choose(trajectory.agent, 1))

    async def outcome(self, trajectory: Trajectory, rubric: Rubric) -> JudgeReport:
        """Have two different judges say whether the task was done; fewer, if there are fewer."""
        return await self._report(trajectory, (outcome(rubric),), self._choose(trajectory.agent, 2))

    def _choose(self, agent: Agent, most: int) -> list[Judge]:
        """Return judges of different models that did not act; who acted only if alone."""
        acted = _kin(agent.model or "")
        different: dict[str, Judge] = {}
        for judge in self._judges:
            different.setdefault(_kin(judge.model.model), judge)
        others = [judge for kin, judge in different.items() if kin != acted]
        return others[:most] or self._judges[:1]

    async def _report(
        self, trajectory: Trajectory, questions: Sequence[Question], judges: Sequence[Judge]
    ) -> JudgeReport:
        try:
            async with asyncio.TaskGroup() as group:
                asked = [group.create_task(one.ask(trajectory, questions)) for one in judges]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        answers = [task.result() for task in asked]
        return JudgeReport(
            judgements=tuple(one for judgements, _ in answers for one in judgements),
            own_model=any(judge.is_same_as(trajectory.agent.model) for judge in judges),
            usage=sum((usage for _, usage in answers), Usage()),
            prompt_sha256=PROMPT_SHA256,
        )


def agreed(report: JudgeReport) -> bool:
    """Do two different models, none of which acted, say that the task was done?

    Each with a median of 4 or more, rounds at most one level apart, and a vote in most rounds.
    """
    said = report.of(OUTCOME)
    models = {_kin(one.model.partition(":")[2] or one.model) for one in said}
    return (
        report.missing is None
        and not report.own_model
        and len(models) >= 2
        and all(says_done(one) and _is_firm(one) for one in said)
    )


def says_done(judgement: Judgement) -> bool:
    return judgement.median is not None and judgement.median >= _GOOD


def kind_of(vote: Vote) -> Kind:
    if vote.invalid is not None:
        return "invalid"
    return "unknown" if vote.score is None else "vote"


def _is_firm(judgement: Judgement) -> bool:
    rounds = {vote.round for vote in judgement.votes}
    voted = {vote.round for vote in judgement.votes if vote.score is not None}
    most = not rounds or 2 * len(voted) > len(rounds)
    return most and judgement.spread is not None and judgement.spread <= _APART


def _judgement(
    question: Question, judge: str, votes: Sequence[Vote], parts: Sequence[Window]
) -> Judgement:
    """Each round: the mean over the windows that voted, by their steps; then the median."""
    weights = {part.number: part.weight for part in parts}
    ordered = sorted(votes, key=lambda vote: (vote.round, vote.window))
    values = []
    for _, round_ in itertools.groupby(ordered, key=lambda vote: vote.round):
        voted = [(v.score, weights[v.window]) for v in round_ if v.score is not None]
        if voted:
            values.append(sum(s * w for s, w in voted) / sum(w for _, w in voted))
    return Judgement(
        criterion=question.criterion,
        model=judge,
        median=round(statistics.median(values), 4) if values else None,
        spread=round(max(values) - min(values), 4) if values else None,
        votes=tuple(ordered),
    )


def _kin(model: str) -> str:
    """Return what a model is called whoever serves it: `org/Name` and `name` are one."""
    return model.rpartition("/")[2].casefold()
