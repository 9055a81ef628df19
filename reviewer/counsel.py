"""Whom the reviewer asks besides its own rules: judges, and a model that suggests changes.

A provider that is away is waited for, minutes at most in each of its outages: scores with a
judge's grades and without them are not the same thing. After that, and where a budget is spent or
the judge refuses, the review says that the judges were not heard, and a person should look.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from common.llm.types import ChatModel, ModelMisconfigured, ModelRefused, ModelUnavailable
from common.logs import logger
from common.metrics import Metrics
from common.quota.terms import BudgetExceeded
from common.review import JudgeReport, Proposal
from common.trajectory import Trajectory
from reviewer.judge.calibration import Calibrations
from reviewer.judge.panel import Panel
from reviewer.proposer import Proposer
from reviewer.rubric import Rubric

log = logger("reviewer")

T = TypeVar("T")
_PAUSES = (1.0, 30.0)
"""Seconds between two tries of a provider that is away: the first, and the longest."""


class Counsel:
    """Those who are asked; without any, reviews rest on rules alone."""

    def __init__(
        self,
        *,
        judges: Sequence[ChatModel] = (),
        proposer: ChatModel | None = None,
        calibrations: Calibrations | None = None,
        votes: int = 3,
        floor: float = 0.6,
        deadline: float = 120.0,
        patience: float = 600.0,
        metrics: Metrics | None = None,
    ) -> None:
        """``floor``: kappa below which judges accept nothing alone. ``deadline``: of one call.
        ``patience``: seconds for which an outage of a provider holds reviews up.
        """
        self._metrics = metrics
        self._panel = (
            Panel(judges, votes=votes, deadline=deadline, heard=self._heard) if judges else None
        )
        self._proposer = (
            Proposer(proposer, deadline=deadline, heard=self._suggested)
            if proposer is not None
            else None
        )
        self._calibrations = calibrations
        self._floor = floor
        self._votes = votes
        self._patience = patience
        self._away: dict[str, float] = {}
        """Since when whom we asked has been away (monotonic)."""

    async def report(self, trajectory: Trajectory, rubric: Rubric) -> JudgeReport | None:
        """Return what the judges say of what checks let through, or of what none looked at."""
        panel, passed = self._panel, trajectory.verdict.passed
        if panel is None or passed is False or trajectory.agent.kind != "llm":
            return None
        ask = panel.outcome if passed is None else panel.grade
        try:
            return await self._patiently("judge", lambda: ask(trajectory, rubric))
        except ModelUnavailable as error:
            return JudgeReport(missing=f"the judge was away: {error}")
        except ModelMisconfigured as error:
            log.warning("judge.misconfigured", task_id=trajectory.task_id, error=str(error)[:500])
            return JudgeReport(missing=f"the judge could not be asked: {error}")

    def trusts(self, report: JudgeReport | None, rubric: Rubric) -> bool:
        """Do all judges of ``report`` agree with verifiers well enough to accept something?"""
        if report is None or self._calibrations is None:
            return False
        names = {judgement.model for judgement in report.judgements}
        return bool(names) and all(
            self._calibrations.trusted(
                rubric.scene, name, rubric, floor=self._floor, votes=self._votes
            )
            for name in names
        )

    @property
    def silent(self) -> bool:
        """Is there nobody to ask?"""
        return self._panel is None and self._proposer is None

    async def suggestions(self, trajectory: Trajectory) -> tuple[Proposal, ...]:
        """Return the changes a model suggests for an attempt that failed; none without one."""
        proposer = self._proposer
        if proposer is None:
            return ()
        try:
            return await self._patiently("proposer", lambda: proposer.suggest(trajectory))
        except (BudgetExceeded, ModelUnavailable, ModelRefused, ModelMisconfigured) as error:
            log.warning("proposer.unheard", task_id=trajectory.task_id, error=str(error)[:500])
            return ()

    def _suggested(self, kind: str) -> None:
        if self._metrics is not None:
            self._metrics.suggestions.labels(kind).inc()

    def _heard(self, kind: str) -> None:
        if self._metrics is not None:
            self._metrics.judge_answers.labels(kind).inc()

    async def _patiently(self, who: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until there is an answer, or its outage has lasted too long for everybody.

        Raises what ``ask`` does; the caller is cancelled when the process drains.
        """
        pause, longest = _PAUSES
        while True:
            try:
                answer = await ask()
            except ModelUnavailable as error:
                now = time.monotonic()
                if now - self._away.setdefault(who, now) >= self._patience:
                    raise
                log.warning(f"{who}.unavailable", error=str(error)[:500], again_in=pause)
                await asyncio.sleep(max(pause, min(error.retry_after or 0.0, longest)))
                pause = min(longest, pause * 2)
            else:
                self._away.pop(who, None)
                return answer
