"""One judge, and how it is asked: questions × windows × rounds, and what is paid for is kept.

Infrastructure trouble is nobody's grade: it goes up to the caller once the calls under way have
ended, and whoever asks again pays only for the votes that are missing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.llm.types import (
    ChatModel,
    ModelMisconfigured,
    ModelRefused,
    ModelReply,
    ModelUnavailable,
)
from common.quota.terms import BudgetExceeded
from common.review import Judgement, Vote
from common.task import Sampling
from common.trajectory import Trajectory, Usage
from reviewer.judge.names import kin
from reviewer.judge.prompt import Question, messages
from reviewer.judge.tally import Kind, kind_of, tally
from reviewer.judge.vote import GRADE, read
from reviewer.judge.windows import Window, budget_of, windows

Heard = Callable[[Kind], None]
"""Told what each answer was."""
_Key = tuple[str, str, str, str, int, int]

AT_ONCE = 16
"""Questions under way at once, of all judges that share their slots."""
_MOST_KEPT = 2_000
"""Votes, of a few hundred bytes each."""
_MAX_TOKENS = 4096
"""Of one answer: a few sentences, and room for a model that thinks first."""
_PAUSES = (0.25, 1.0)
"""Seconds before one call is made a second and a third time."""
_LONGEST_PAUSE = 30.0
"""Seconds, whatever the provider asks for; longer ones are for the caller to wait."""


class Kept:
    """Votes that no report holds yet, with what they cost; the oldest go first."""

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._most = most
        self._votes: OrderedDict[_Key, tuple[Vote, Usage]] = OrderedDict()

    def get(self, key: _Key) -> tuple[Vote, Usage] | None:
        return self._votes.get(key)

    def put(self, key: _Key, vote: Vote, cost: Usage) -> None:
        self._votes[key] = vote, cost
        self._votes.move_to_end(key)
        while len(self._votes) > self._most:
            self._votes.popitem(last=False)

    def drop(self, trajectory: Trajectory) -> None:
        """Forget an attempt's: they are reported, and are not to be reported a second time."""
        mine = (trajectory.task_id, trajectory.attempt_id)
        for key in [key for key in self._votes if key[:2] == mine]:
            del self._votes[key]


@dataclass(frozen=True)
class Asked:
    """What one judge said of one attempt."""

    judgements: tuple[Judgement, ...]
    usage: Usage
    spent: BudgetExceeded | None = None
    """Why it was not asked to the end."""


@dataclass
class _Asking:
    """One attempt that a judge is being asked about."""

    trajectory: Trajectory
    trouble: ModelUnavailable | ModelMisconfigured | BudgetExceeded | None = None
    """Once there is any, no new call is made; those under way are paid for, and end."""
    votes: dict[str, list[Vote]] = field(default_factory=dict)
    """By criterion."""
    usage: Usage = field(default_factory=Usage)


class Judge:
    """One model that grades. ``votes``: rounds; ``deadline``: seconds of one call."""

    def __init__(
        self,
        model: ChatModel,
        *,
        votes: int,
        deadline: float,
        heard: Heard = lambda _: None,
        endpoint: str = "",
        slots: asyncio.Semaphore | None = None,
        kept: Kept | None = None,
    ) -> None:
        """``endpoint``: where it is served. ``slots`` and ``kept``: shared with other judges."""
        self.model = model
        self.votes = votes
        self.endpoint = endpoint
        self._deadline = deadline
        self._heard = heard
        self._slots = slots or asyncio.Semaphore(AT_ONCE)
        self._kept = kept if kept is not None else Kept()

    @property
    def name(self) -> str:
        """As in judgements and calibrations: `provider:model`."""
        return f"{self.model.provider}:{self.model.model}"

    def is_same_as(self, model: str | None) -> bool:
        """Is it the model of that name, whoever serves it?"""
        return model is not None and kin(model) == kin(self.model.model)

    async def ask(self, trajectory: Trajectory, questions: Sequence[Question]) -> Asked:
        """Return a judgement for each question that was answered at all, and what it cost.

        A refusal is an answer that is no vote. Raises `ModelUnavailable` and `ModelMisconfigured`;
        votes given before are kept for the next time.
        """
        # In a thread: a record of megabytes would hold up everything else for a moment.
        parts = await asyncio.to_thread(windows, trajectory, budget_of(self.model.capabilities))
        asking = _Asking(trajectory)
        try:
            async with asyncio.TaskGroup() as group:
                for question in questions:
                    for part in parts:
                        group.create_task(self._rounds(asking, question, part))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        trouble = asking.trouble
        if trouble is not None and not isinstance(trouble, BudgetExceeded):
            raise trouble
        judgements = tuple(
            tally(one.criterion, self.name, votes, parts, rounds=self.votes)
            for one in questions
            if (votes := asking.votes.get(one.criterion))
        )
        return Asked(judgements, asking.usage, trouble)

    async def _rounds(self, asking: _Asking, question: Question, window: Window) -> None:
        """Ask about one window in every round, one after the other: the prompt is cached then."""
        async with self._slots:
            chat: list[dict[str, Any]] | None = None
            refused: str | None = None
            for number in range(1, self.votes + 1):
                key = self._key(asking.trajectory, question, window, number)
                known = self._kept.get(key)
                if known is None:
                    if asking.trouble is not None:
                        return
                    chat = chat or messages(question, window, self.model.capabilities)
                    try:
                        known = await self._vote(asking, chat, window, number, refused)
                    except (ModelUnavailable, ModelMisconfigured, BudgetExceeded) as error:
                        asking.trouble = asking.trouble or error
                        return
                    self._kept.put(key, *known)
                    self._heard(kind_of(known[0]))
                vote, cost = known
                refused = vote.invalid if _is_refusal(vote) else None
                asking.votes.setdefault(question.criterion, []).append(vote)
                asking.usage += cost

    async def _vote(
        self,
        asking: _Asking,
        chat: list[dict[str, Any]],
        window: Window,
        number: int,
        refused: str | None,
    ) -> tuple[Vote, Usage]:
        """Return one vote; what was ``refused`` once is not asked again with another seed."""
        try:
            if refused is None:
                reply = await self._call(asking, chat, number)
                return read(reply, window, number=number), reply.usage
        except ModelRefused as error:
            refused = f"{_REFUSED}: {error}"[:500]
        return Vote(round=number, window=window.number, invalid=refused), Usage()

    async def _call(self, asking: _Asking, chat: list[dict[str, Any]], number: int) -> ModelReply:
        """Ask once; what gave way for a moment is asked again, and nothing else with it."""
        capped = "max_tokens" in self.model.capabilities.extra_body
        sampling = Sampling(temperature=0, seed=number, max_tokens=None if capped else _MAX_TOKENS)
        scene = asking.trajectory.assignment.task.scene
        pauses = iter(_PAUSES)
        while True:
            try:
                return await self.model.complete(
                    chat, [GRADE], sampling, deadline=self._deadline, account=scene
                )
            except ModelUnavailable as error:
                pause = next(pauses, None)
                if pause is None or asking.trouble is not None:
                    raise
                wanted = min(error.retry_after or 0.0, _LONGEST_PAUSE)
                await asyncio.sleep(max(pause, wanted))
                if asking.trouble is not None:  # it came meanwhile
                    raise

    def _key(self, trajectory: Trajectory, question: Question, window: Window, number: int) -> _Key:
        asked = repr(question)  # all of it: rubrics are read again when they change
        return (
            trajectory.task_id, trajectory.attempt_id, self.name, asked, window.number, number,
        )  # fmt: skip


_REFUSED = "the judge refused"


def _is_refusal(vote: Vote) -> bool:
    return vote.invalid is not None and vote.invalid.startswith(_REFUSED)
