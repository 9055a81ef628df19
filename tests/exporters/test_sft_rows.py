"""What a trainer is given must be what happened, in a form it can read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from common.trajectory import Agent
from exporters.messages import NotExportable
from exporters.sft import sft_row
from tests.exporters.attempts import CALL, FENCED, NATIVE, TOOLS, attempt, review_of


def row_of(messages: tuple[dict[str, Any], ...] = NATIVE, **changes: Any) -> dict[str, Any]:
    trajectory = attempt(messages, **changes)
    row = sft_row(trajectory, review_of(trajectory))
    return json.loads(json.dumps(row, allow_nan=False))  # type: ignore[no-any-return]


def test_a_native_conversation_keeps_calls_results_and_thoughts() -> None:
    assert row_of()["messages"] == [
        {"role": "system", "content": "You solve tasks."},
        {"role": "user", "content": "Print é."},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "One line will do.",
            "tool_calls": [CALL],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "é"},
        {"role": "assistant", "content": "It is done."},
    ]
    assert row_of()["tools"] == list(TOOLS)


def test_no_content_is_ever_null_and_arguments_are_json_text() -> None:
    for message in row_of()["messages"]:
        assert isinstance(message["content"], str)
        for call in message.get("tool_calls", ()):
            assert json.loads(call["function"]["arguments"]) == {"code": 'print("é")'}


def test_arguments_that_came_as_an_object_become_text_once() -> None:
    call = {"id": "call_1", "function": {"name": "run_python", "arguments": {"code": "é"}}}
    row = row_of(({"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}))
    assert row["messages"][1]["tool_calls"][0] == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "run_python", "arguments": '{"code": "é"}'},
    }


@pytest.mark.parametrize("parse", ["fenced", "schema"])
def test_a_text_conversation_stays_text_and_shows_no_tools_twice(parse: str) -> None:
    row = row_of(FENCED, parse=parse)
    assert row["messages"] == list(FENCED)
    assert row["tools"] == []


def test_an_oracle_plays_as_natively_as_a_model() -> None:
    row = row_of(parse="scripted", agent=Agent(kind="oracle"))
    assert row["messages"][2]["tool_calls"] == [CALL]
    assert row["tools"] == list(TOOLS)
    assert row["metadata"]["model"] is None


def test_the_row_says_where_it_comes_from() -> None:
    assert row_of()["metadata"] == {
        "task_id": "task-1",
        "attempt_id": "task-1.r2-s0.abc",
        "revision": 2,
        "sample": 0,
        "scene": "code",
        "first_try": False,
        "score": 93,
        "accepted_by": "verifier",
        "labels": [],
        "model": "some-model",
        "model_source": "api",
    }


def test_parts_of_text_are_joined_and_developer_means_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = row_of(
        ({"role": "developer", "content": parts}, {"role": "assistant", "content": parts}),
    )
    assert row["messages"] == [
        {"role": "system", "content": "ab"},
        {"role": "assistant", "content": "ab"},
    ]


def said(**message: Any) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, message)


def asked(arguments: Any) -> tuple[dict[str, Any], ...]:
    function = {"name": "run_python", "arguments": arguments}
    return said(role="assistant", tool_calls=[{"id": "call_1", "function": function}])


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (({"role": "user", "content": "x"},), "no_assistant"),
        (said(role="critic", content="no"), "unknown_role"),
        (said(role="tool", tool_call_id="call_9", content="1"), "orphan_tool_result"),
        (said(role="user", content=[{"type": "image_url", "image_url": {}}]), "not_text"),
        (said(role="assistant", tool_calls=[{"function": {"name": "x"}}]), "malformed_call"),
        (asked('{"code": "unfinished'), "malformed_arguments"),
        (asked("[1]"), "malformed_arguments"),
        (asked([1]), "malformed_arguments"),
        (asked("[" * 100_000), "malformed_arguments"),
    ],
)
def test_what_cannot_be_said_faithfully_is_no_row(
    messages: tuple[dict[str, Any], ...], reason: str
) -> None:
    with pytest.raises(NotExportable) as caught:
        row_of(messages)
    assert caught.value.reason == reason


def test_a_review_of_another_attempt_is_refused() -> None:
    other = attempt(attempt_id="other")
    with pytest.raises(ValueError, match="not the review"):
        sft_row(attempt(), review_of(other))
