"""Several tries at one task: their chances are those of brute force, their best is the best."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.groups import Try, group_of, pass_all_k, pass_at_k
from common.review import Group

TRIES = st.lists(
    st.builds(
        Try,
        attempt_id=st.from_regex(r"\Ar1-s\d{1,3}\Z"),
        passed=st.none() | st.booleans(),
        reward=st.none() | st.floats(0, 1),
        steps=st.integers(0, 9),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda one: one.attempt_id,
)


@pytest.mark.parametrize("n", range(1, 9))
def test_the_chances_are_what_counting_every_choice_gives(n: int) -> None:
    for c in range(n + 1):
        tries = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            choices = list(combinations(tries, k))
            some = sum(any(choice) for choice in choices) / len(choices)
            every = sum(all(choice) for choice in choices) / len(choices)
            assert pass_at_k(n, c, k) == pytest.approx(some)
            assert pass_all_k(n, c, k) == pytest.approx(every)


def test_a_choice_that_cannot_be_made_is_refused() -> None:
    for n, c, k in ((4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)):
        with pytest.raises(ValueError, match="no such group"):
            pass_at_k(n, c, k)
        with pytest.raises(ValueError, match="no such group"):
            pass_all_k(n, c, k)


@given(TRIES, st.randoms())
def test_a_group_does_not_depend_on_who_came_first(tries: list[Try], chance: Random) -> None:
    group = group_of(tries)
    shuffled = list(tries)
    chance.shuffle(shuffled)
    assert group_of(shuffled) == group
    assert Group.model_validate_json(group.model_dump_json()) == group
    assert set(group.attempts) == {one.attempt_id for one in tries}
    assert group.best in group.attempts


@given(TRIES)
def test_what_nobody_verified_counts_in_the_size_and_in_no_chance(tries: list[Try]) -> None:
    group = group_of(tries)
    verified = [one for one in tries if one.passed is not None]
    passed = sum(one.passed is True for one in verified)
    assert (group.size, group.passed) == (len(tries), passed)
    ks = [int(k) for k in group.pass_at]
    assert list(group.pass_all) == list(group.pass_at)
    assert ks == sorted({k for k in (1, 2, 4, 8, len(verified)) if 1 <= k <= len(verified)})
    if verified:
        assert group.pass_at["1"] == pytest.approx(passed / len(verified))
        assert group.pass_all["1"] == pytest.approx(passed / len(verified))
        assert all(group.pass_all[k] <= group.pass_at[k] + 1e-12 for k in group.pass_at)


def test_the_best_passed_then_has_the_reward_then_took_fewer_steps() -> None:
    worst_first = [
        Try("e", None, None, 1), Try("d", False, 0.9, 1), Try("c", True, 0.8, 2),
        Try("b", True, 1.0, 7), Try("a2", True, 1.0, 3), Try("a1", True, 1.0, 3),
    ]  # fmt: skip
    for known in range(1, len(worst_first) + 1):
        assert group_of(worst_first[:known]).best == worst_first[known - 1].attempt_id
    assert group_of(worst_first).spread == pytest.approx(0.2)
    assert group_of(worst_first[:1]).spread == 0


def test_an_attempt_is_counted_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        group_of([Try("a", True, 1.0, 1), Try("a", True, 1.0, 1)])
    with pytest.raises(ValueError, match="at least one"):
        group_of([])
