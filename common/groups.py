"""Several tries at one task, looked at together: how often it is solved, and which try is best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb

from common.review import Group


@dataclass(frozen=True)
class Try:
    """One attempt, as far as a group is concerned."""

    attempt_id: str
    passed: bool | None
    """None: nothing verified it. It is of the group, but proves nothing about the task."""
    reward: float | None
    steps: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance that at least one of ``k`` tries passes, where ``c`` of ``n`` did.

    The unbiased estimator of Chen et al. 2021 (arXiv 2107.03374), eq. 1: over all choices of k
    of the n tries, the share that holds one that passed.
    """
    _sane(n, c, k)
    return 1 - comb(n - c, k) / comb(n, k)


def pass_all_k(n: int, c: int, k: int) -> float:
    """Return the chance that all of ``k`` tries pass, where ``c`` of ``n`` did.

    pass^k of Yao et al. 2024 (arXiv 2406.12045): over all choices of k of the n tries, the share
    in which every one passed.
    """
    _sane(n, c, k)
    return comb(c, k) / comb(n, k)


def group_of(tries: Sequence[Try]) -> Group:
    """Return what ``tries`` come to together; in whatever order they are given."""
    if not tries:
        raise ValueError("a group needs at least one try")
    ids = sorted(one.attempt_id for one in tries)
    if len(set(ids)) < len(ids):
        raise ValueError(f"the same attempt is in the group twice: {', '.join(ids)}")
    verified = sum(one.passed is not None for one in tries)
    passed = sum(one.passed is True for one in tries)
    rewards = [one.reward for one in tries if one.reward is not None]
    return Group(
        size=len(tries),
        passed=passed,
        pass_at={str(k): pass_at_k(verified, passed, k) for k in _ks(verified)},
        pass_all={str(k): pass_all_k(verified, passed, k) for k in _ks(verified)},
        spread=max(rewards) - min(rewards) if rewards else 0.0,
        best=min(tries, key=_worse).attempt_id,
        attempts=tuple(ids),
    )


def _worse(one: Try) -> tuple[bool, float, int, str]:
    return (one.passed is not True, -(one.reward or 0.0), one.steps, one.attempt_id)


def _ks(n: int) -> Iterable[int]:
    """Return the powers of two up to ``n``, and ``n`` itself."""
    powers = [1 << i for i in range(n.bit_length())]
    return dict.fromkeys([*powers, n]) if n else ()


def _sane(n: int, c: int, k: int) -> None:
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"{c} of {n} passed, {k} at a time: no such group")
