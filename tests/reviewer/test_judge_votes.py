"""What counts as the answer of a judge."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.llm.types import Capabilities
from common.review import Vote
from reviewer.judge.vote import read
from reviewer.judge.windows import windows
from tests.reviewer.judges import (
    acted,
    grade,
    message_of,
    reply_of,
)

SAID = json.dumps({"tool": "grade", "arguments": grade(5)})
NATIVE = Capabilities(tool_mode="native")
SCHEMA = Capabilities(tool_mode="schema")


def vote(said: Any, *, capabilities: Capabilities = NATIVE, steps: int = 3) -> Vote:
    (window,) = windows(acted(*("x" for _ in range(steps))), 48_000)
    return read(reply_of(message_of(said), capabilities), window, number=1)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (grade("4"), "integer"),
        (grade(4.0), "integer"),
        (grade(True), "integer"),
        (grade(0), "integer"),
        (grade(6), "integer"),
        (grade(100), "integer"),
        (grade(None), "neither"),
        (grade(4, unknown=True), "both"),
        (grade(4, unknown="no"), "neither true nor false"),
        (grade(reason=""), "no reason"),
        (grade(reason=None), "no reason"),
        (grade(3, evidence=()), "no step"),
        (grade(evidence=(9,)), "do not exist: 9"),
        (grade(evidence=(1, 9)), "do not exist: 9"),
        (grade(evidence=("1",)), "list of step numbers"),
        (grade(evidence=(True,)), "list of step numbers"),
        (grade(evidence="1"), "list of step numbers"),
        (grade(None, unknown=True, evidence=(9,)), "do not exist"),
        ("I would say 5 of 5.", "no call"),
        ('{"score": 5', "unreadable"),
        (f"{SAID} is what step 1 tells me to say. {SAID}", "unreadable"),
        (f"It tells me to say <tool_call>{SAID}</tool_call>. I do not.", "no call"),
        (f"It tells me to say this.\n```json\n{SAID}\n```\nI do not.", "no call"),
        (f"```json\n{SAID}\n```\n```json\n{SAID}\n```", "unreadable"),
        (SAID.replace('"score": 5', '"score": 5, "score": 1'), "stands in it twice"),
        (SAID.replace('"arguments"', '"score": 1, "arguments"'), "not one call"),
        (SAID.replace('"grade"', '"finish"'), "another tool"),
        ("", "no call"),
    ],
)
def test_an_answer_that_breaks_the_rules_is_no_vote_and_says_why(said: Any, why: str) -> None:
    found = vote(said)
    assert found.score is None
    assert found.invalid is not None
    assert why in found.invalid


@pytest.mark.parametrize("capabilities", [NATIVE, SCHEMA])
def test_a_judge_that_quotes_the_record_does_not_vote_what_the_record_says(
    capabilities: Capabilities,
) -> None:
    quoted = SAID.replace('"tool"', '"name"')
    for order in (f"<tool_call>{quoted}</tool_call>", f"```json\n{SAID}\n```", SAID):
        for answer in (f"It holds:\n{order}\nNothing was done: 1.", f"{order} is what it says."):
            found = vote(answer, capabilities=capabilities)
            assert found.score is None
            assert found.invalid is not None


def test_a_key_that_stands_twice_in_a_call_is_no_vote() -> None:
    message = message_of(grade(1))
    called = message["tool_calls"][0]["function"]
    called["arguments"] = called["arguments"].replace('"score": 1', '"score": 1, "score": 5')
    (window,) = windows(acted("x"), 48_000)
    assert "twice" in (read(reply_of(message, NATIVE), window, number=1).invalid or "")


def test_that_nothing_was_done_needs_no_step_to_show_it() -> None:
    assert [vote(grade(n, evidence=())).score for n in (1, 2, 3, 4, 5)] == [1, 2, None, None, None]


def test_unknown_is_an_answer_but_no_score() -> None:
    found = vote(grade(None, unknown=True, evidence=()))
    assert (found.score, found.invalid) == (None, None)


@pytest.mark.parametrize("capabilities", [NATIVE, SCHEMA])
def test_a_model_may_write_its_grade_as_one_json_object(capabilities: Capabilities) -> None:
    said = grade(3, evidence=(2, 2, 1))
    called = json.dumps({"thought": "Hm.", "tool": "grade", "arguments": said})
    for text in (called, json.dumps(said), f"```json\n{json.dumps(said)}\n```"):
        found = vote(text, capabilities=capabilities)
        assert (found.score, found.evidence, found.invalid) == (3, (2, 1), None)


def test_two_grades_in_one_answer_are_none() -> None:
    message = message_of(grade(5))
    message["tool_calls"] *= 2
    (window,) = windows(acted("x"), 48_000)
    found = read(reply_of(message, NATIVE), window, number=1)
    assert found.invalid == "2 calls instead of one"


def test_an_attempt_without_steps_is_graded_without_evidence() -> None:
    assert vote(grade(2, evidence=()), steps=0).score == 2
    assert vote(grade(2, evidence=(1,)), steps=0).invalid is not None


def test_a_vote_rests_on_a_step_that_its_window_shows() -> None:
    first, *_ = windows(acted("x" * 3000, "y" * 3000, "z" * 3000), 5_000)
    assert first.shown == {1}
    assert read(reply_of(message_of(grade(evidence=(3,))), NATIVE), first, number=1).invalid
    assert read(reply_of(message_of(grade(evidence=(1, 3))), NATIVE), first, number=1).score == 4


(THREE_STEPS,) = windows(acted("x", "y", "z"), 48_000)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=4,
)
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 6, 10**30, 3.5, float("nan"), float("inf"), "", "5", "\ud800", "字",
    [], [1], ["1"], [[1]], {}, {"score": 5},
)  # fmt: skip
"""Whatever a field may hold that it should not."""
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "reason": st.sampled_from(["Because.", "Because.", *ODD]),
        "evidence": st.sampled_from([[1], [1, 2], [3, 3], [4], [1, 4], *ODD]),
        "score": st.sampled_from([1, 2, 3, 4, 5, *ODD]),
        "unknown": st.sampled_from([False, False, False, True, *ODD]),
        "arguments": st.sampled_from(ODD),
    },
)
ANSWERS = st.one_of(
    NEARLY,
    JSON,
    st.text(max_size=30),
    NEARLY.map(json.dumps),
    NEARLY.map(lambda said: json.dumps({"tool": "grade", "arguments": said})),
    NEARLY.map(lambda said: f"```json\n{json.dumps(said)}\n```"),
)


@settings(max_examples=500, deadline=None)
@given(ANSWERS, st.sampled_from([NATIVE, SCHEMA]), st.sampled_from(["stop", "length"]))
def test_whatever_a_judge_answers_is_a_vote_from_1_to_5_or_none(
    said: Any, capabilities: Capabilities, finish: str
) -> None:
    found = read(reply_of(message_of(said), capabilities, finish), THREE_STEPS, number=1)
    assert found.score in (None, 1, 2, 3, 4, 5)
    assert type(found.score) is not bool
    if found.score is not None:
        assert found.invalid is None
        assert found.reason
        assert found.evidence or found.score < 3
        assert set(found.evidence) <= {1, 2, 3}
