"""How far two raters agree, beyond what chance would give: of judges, verifiers and people.

Each returns None where it is not defined, and never a number in its place.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def cohen_kappa(pairs: Iterable[tuple[Hashable, Hashable]]) -> float | None:
    """Return Cohen's kappa: 1 is full agreement, 0 what chance gives (Cohen 1960).

    None without pairs, and where both raters only ever said one and the same thing.
    """
    seen = list(pairs)
    if not seen:
        return None
    n = len(seen)
    ours, theirs = Counter(one for one, _ in seen), Counter(other for _, other in seen)
    observed = sum(one == other for one, other in seen) / n
    by_chance = sum(ours[label] * theirs[label] for label in ours) / n**2
    if by_chance == 1:
        return None
    return (observed - by_chance) / (1 - by_chance)


def balanced_accuracy(pairs: Iterable[tuple[Hashable, Hashable]]) -> float | None:
    """Return the mean, over the classes of the truth, of the share that was guessed right.

    ``pairs``: (guess, truth). None where the truth knows fewer than two classes.
    """
    seen = list(pairs)
    every = Counter(truth for _, truth in seen)
    right = Counter(truth for guess, truth in seen if guess == truth)
    if len(every) < 2:
        return None
    return sum(right[truth] / count for truth, count in every.items()) / len(every)


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float | None:
    """Return the chance that a true one scores higher than a false one; a tie counts half.

    None where one of the two is missing.
    """
    false = sorted(s for s, label in zip(scores, labels, strict=True) if not label)
    true = [s for s, label in zip(scores, labels, strict=True) if label]
    if not false or not true:
        return None
    wins = sum(bisect_left(false, s) + bisect_right(false, s) for s in true) / 2
    return wins / (len(true) * len(false))
