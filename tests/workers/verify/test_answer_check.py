"""The answer an agent gives, in all the clothes that models put on it."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.workers.verify.scripted import Judge
from workers.verify import patterns


@pytest.mark.parametrize(
    "answer",
    ["Paris", " paris\n", '"Paris"', "`Paris`", "Paris.", "'Paris.'", "```\nParis\n```",
     "```text\n'Paris'.\n```", "「Paris」。"],
)  # fmt: skip
async def test_an_exact_answer_may_be_wrapped(judge: Judge, answer: str) -> None:
    assert (await judge({"type": "answer", "expected": "Paris"}, answer=answer)).passed


@pytest.mark.parametrize("answer", ["", "  ", "Paris or Rome", "The answer is Paris", '""', "..."])
async def test_an_exact_answer_is_nothing_else(judge: Judge, answer: str) -> None:
    assert not (await judge({"type": "answer", "expected": "Paris"}, answer=answer)).passed


async def test_case_can_matter(judge: Judge) -> None:
    check = {"type": "answer", "expected": "Paris", "ignore_case": False}
    assert not (await judge(check, answer="paris")).passed


async def test_an_alias_is_as_good(judge: Judge) -> None:
    check = {"type": "answer", "expected": "United Kingdom", "aliases": ["UK", "英国"]}
    assert (await judge(check, answer="英国。")).passed
    assert not (await judge(check, answer="France")).passed


@pytest.mark.parametrize(
    ("expected", "answer"),
    [
        (42, "42"), (42, "42.0"), (42, "The answer is 42."), (42, "答案是 42。"), (42, "答案是42"),
        (42, "４２"), (1234.5, "$1,234.50"), (1234567, "1,234,567 people"), (-3, "−3"),
        (-5, "-$5"), (50, "50%"), (0.5, "50 %"), (0.5, ".5"), (2500, "2.5e3"), ("42", "42"),
        (5, "H2O needs 5"), (42, "42 km"), (1e-7, "1.0E-7"),
    ],
)  # fmt: skip
async def test_a_number_is_understood(judge: Judge, expected: Any, answer: str) -> None:
    check = {"type": "answer", "expected": expected, "match": "numeric"}
    assert (await judge(check, answer=answer)).passed


@pytest.mark.parametrize(
    "answer",
    ["", "41", "42 or 43", "between 41 and 42", "forty-two", "4.2.42", "1,42", "42,5", "-42",
     "1e999", "nan", "9" * 5000, "4" * 2000],
)  # fmt: skip
async def test_a_wrong_or_ambiguous_number_fails(judge: Judge, answer: str) -> None:
    check = {"type": "answer", "expected": 42, "match": "numeric"}
    assert not (await judge(check, answer=answer)).passed


async def test_tolerance_is_relative_or_absolute_whichever_allows_more(judge: Judge) -> None:
    check = {"type": "answer", "expected": 3.14159, "match": "numeric", "tolerance": 0.01}
    assert (await judge(check, answer="3.15")).passed
    assert not (await judge(check, answer="3.2")).passed
    big = {"type": "answer", "expected": "1000000", "match": "numeric", "tolerance": 0.01}
    assert (await judge(big, answer="1009000")).passed


async def test_large_whole_numbers_are_compared_exactly(judge: Judge) -> None:
    check = {"type": "answer", "expected": str(2**70), "match": "numeric", "tolerance": 0}
    assert (await judge(check, answer=str(2**70))).passed
    assert not (await judge(check, answer=str(2**70 + 1))).passed


@pytest.mark.parametrize(
    "answer",
    ["a, b, c", "c\nb\na", '["b", "a", "c"]', "['a','b','c']", "- a\n- B\n- c", "1. a\n2. b\n3. c",
     "a、b，c", "```json\n[\"a\",\"b\",\"c\"]\n```", "a, b, c, a."],
)  # fmt: skip
async def test_a_set_has_no_order(judge: Judge, answer: str) -> None:
    for expected in (["a", "b", "c"], "c, a, b"):
        check = {"type": "answer", "expected": expected, "match": "set"}
        assert (await judge(check, answer=answer)).passed, (expected, answer)


@pytest.mark.parametrize("answer", ["", "a, b", "a, b, c, d", "abc", '{"a": 1}'])
async def test_a_set_must_be_complete(judge: Judge, answer: str) -> None:
    check = {"type": "answer", "expected": ["a", "b", "c"], "match": "set"}
    assert not (await judge(check, answer=answer)).passed


async def test_items_on_lines_may_hold_commas(judge: Judge) -> None:
    check = {"type": "answer", "expected": ["Paris, France", "Rome"], "match": "set"}
    assert (await judge(check, answer="Rome\nParis, France")).passed


async def test_a_pattern_describes_the_whole_answer(judge: Judge) -> None:
    check = {"type": "answer", "expected": r"v\d+\.\d+", "match": "regex"}
    assert (await judge(check, answer=" V1.20 ")).passed
    assert not (await judge(check, answer="it is v1.20")).passed


async def test_a_catastrophic_pattern_ends(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "CPU_SECONDS", 1)
    started = time.monotonic()
    check = {"type": "answer", "expected": "(x+x+)+y", "match": "regex"}
    result = await judge(check, answer="x" * 60)
    assert not result.passed and "needs more than" in result.detail
    assert time.monotonic() - started < 60


async def test_an_endless_answer_is_not_read(judge: Judge) -> None:
    check = {"type": "answer", "expected": "a", "match": "contains"}
    result = await judge(check, answer="a" * 100_000)
    assert not result.passed and "100000 characters" in result.detail
