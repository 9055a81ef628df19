"""What the votes of one judge on one criterion come to: windows make a round, rounds a grade."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from common.review import APART, Judgement, Vote
from reviewer.judge.windows import Window
from reviewer.rubric import OUTCOME

TALLYING = 2
"""Raised with every change of what votes come to: no calibration holds across two."""
Kind = Literal["vote", "unknown", "invalid"]

_GOOD = 4.0
"""The level of `outcome` from which a judge says that the task was done."""
_AT_ODDS = 2
"""Windows of one round that differ by more are no detail: the round has no one view."""


@dataclass(frozen=True)
class _Round:
    value: float
    apart: float
    """By how much its windows differ, where that is too much; else 0."""


def tally(
    criterion: str, judge: str, votes: Sequence[Vote], parts: Sequence[Window], *, rounds: int
) -> Judgement:
    """Return the median over the rounds that voted; ``rounds``: those there should have been.

    Whether the task was done only most of the rounds can say: fewer are no grade.
    """
    weights = {part.number: part.weight for part in parts}
    ordered = sorted(votes, key=lambda vote: (vote.round, vote.window))
    voted = []
    for _, of_round in itertools.groupby(ordered, key=lambda vote: vote.round):
        if (found := _round(criterion, list(of_round), weights)) is not None:
            voted.append(found)
    if criterion == OUTCOME and 2 * len(voted) <= rounds:
        voted = []
    values = [one.value for one in voted]
    spread = max(max(values) - min(values), *(one.apart for one in voted)) if voted else None
    return Judgement(
        criterion=criterion,
        model=judge,
        median=round(statistics.median(values), 4) if values else None,
        spread=None if spread is None else round(spread, 4),
        votes=tuple(ordered),
    )


def _round(criterion: str, votes: Sequence[Vote], weights: Mapping[int, float]) -> _Round | None:
    """Return what one round says; None if too little of the attempt has a vote.

    A dimension: the mean over the windows, by their steps. Whether the task was done: the lowest of
    them, since what one part got done another may undo.
    """
    scores = {vote.window: vote.score for vote in votes if vote.score is not None}
    heard = sum(weights[window] for window in scores)
    if not scores or 2 * heard <= sum(weights.values()):
        return None
    if criterion == OUTCOME:
        return _Round(min(scores.values()), 0.0) if _is_whole(votes, len(weights)) else None
    apart = max(scores.values()) - min(scores.values())
    value = sum(score * weights[window] for window, score in scores.items()) / heard
    return _Round(value, float(apart) if apart > _AT_ODDS else 0.0)


def _is_whole(votes: Sequence[Vote], windows: int) -> bool:
    """Was every window answered, and does the last one, which shows the end, have a score?"""
    answered = {vote.window for vote in votes if vote.invalid is None}
    last = any(vote.window == windows and vote.score is not None for vote in votes)
    return last and len(answered) == windows


def says_done(judgement: Judgement) -> bool:
    return judgement.median is not None and judgement.median >= _GOOD


def is_firm(judgement: Judgement) -> bool:
    """Do the rounds that voted say nearly the same?"""
    return judgement.spread is not None and judgement.spread <= APART


def kind_of(vote: Vote) -> Kind:
    if vote.invalid is not None:
        return "invalid"
    return "unknown" if vote.score is None else "vote"
