"""Agreement, against examples worked by hand and against the definitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.agreement import auc, balanced_accuracy, cohen_kappa

BOTH = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40)


def table(yes_yes: int, yes_no: int, no_yes: int, no_no: int) -> list[tuple[bool, bool]]:
    """(guess, truth), so many of each."""
    counts = (yes_yes, yes_no, no_yes, no_no)
    kinds = ((True, True), (True, False), (False, True), (False, False))
    return [kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count)]


def test_kappa_of_two_by_two_tables_worked_by_hand() -> None:
    # 35 of 50 agree: 0.7. By chance 25/50 · 30/50 + 25/50 · 20/50 = 0.5. (0.7 - 0.5) / 0.5
    assert cohen_kappa(table(20, 5, 10, 15)) == pytest.approx(0.4)
    # 60 of 100 agree in both; the margins differ: 0.54 and 0.46 by chance.
    assert cohen_kappa(table(45, 15, 25, 15)) == pytest.approx(0.06 / 0.46)
    assert cohen_kappa(table(25, 35, 5, 35)) == pytest.approx(0.14 / 0.54)
    assert cohen_kappa(table(5, 0, 0, 7)) == 1
    assert cohen_kappa(table(0, 5, 5, 0)) == -1


def test_kappa_knows_more_than_two_classes() -> None:
    pairs = [("pass", "pass"), ("fail", "fail"), ("unsure", "pass"), ("unsure", "fail")]
    assert cohen_kappa(pairs) == pytest.approx((2 / 4 - 4 / 16) / (1 - 4 / 16))


def test_what_is_not_defined_is_none() -> None:
    assert cohen_kappa([]) is None
    assert cohen_kappa(table(9, 0, 0, 0)) is None
    assert balanced_accuracy([]) is None
    assert balanced_accuracy(table(3, 0, 4, 0)) is None
    assert auc([], []) is None
    assert auc([1, 2], [True, True]) is None


def test_a_judge_that_says_one_thing_to_everything_agrees_by_chance_only() -> None:
    always_yes = table(90, 10, 0, 0)
    assert cohen_kappa(always_yes) == 0
    assert balanced_accuracy(always_yes) == 0.5


def test_balanced_accuracy_of_a_table_worked_by_hand() -> None:
    assert balanced_accuracy(table(8, 30, 2, 70)) == pytest.approx((8 / 10 + 70 / 100) / 2)


def test_auc_of_a_row_worked_by_hand() -> None:
    # 5 beats 1 and 4; 4 beats 1 and ties with 4: (2 + 1.5) of 4
    assert auc([5, 4, 4, 1], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert auc([1, 5], [True, False]) == 0


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=30))
def test_auc_is_what_counting_every_pair_gives(rated: list[tuple[int, bool]]) -> None:
    true = [s for s, label in rated if label]
    false = [s for s, label in rated if not label]
    found = auc([s for s, _ in rated], [label for _, label in rated])
    if not true or not false:
        assert found is None
    else:
        wins = sum((t > f) + (t == f) / 2 for t in true for f in false)
        assert found == pytest.approx(wins / (len(true) * len(false)))


@given(BOTH)
def test_kappa_is_what_its_definition_gives_for_whoever_is_named_first(
    pairs: list[tuple[bool, bool]],
) -> None:
    n = len(pairs)
    agree = sum(a == b for a, b in pairs) / n
    # The chance that two answers drawn apart from each other agree, counted one by one.
    chance = sum(a == b for a, _ in pairs for _, b in pairs) / n**2
    found = cohen_kappa(pairs)
    if chance == 1:
        assert found is None
    else:
        assert found == pytest.approx((agree - chance) / (1 - chance))
        assert cohen_kappa([(b, a) for a, b in pairs]) == pytest.approx(found)
