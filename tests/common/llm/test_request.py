"""What goes out, by tool mode."""

from __future__ import annotations

import json

from jsonschema import Draft202012Validator

from common.llm.parse import read_answer
from common.llm.request import action_schema, examples, mode_for, shape
from common.llm.types import Capabilities
from tests.common.llm.conftest import FINISH, RUN_PYTHON, TOOLS

NATIVE = Capabilities(tool_mode="native")
FENCED = Capabilities(tool_mode="fenced")
SCHEMA = Capabilities(tool_mode="schema")
SEARCH = {
    "function": {
        "name": "web_search",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}, "limit": {"type": "integer"}},
            "required": ["query", "limit"],
            "additionalProperties": False,
        },
    }
}


def test_a_chat_goes_out_exactly_as_given() -> None:
    call = {"id": "c", "function": {"name": "finish", "arguments": "{}"}}
    chat = [
        {"role": "system", "content": "Be good."},
        {"role": "user", "content": "Do it."},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "x"},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    for capabilities in (NATIVE, FENCED, SCHEMA):
        request = shape(chat, TOOLS, capabilities)
        assert request.messages == chat
        assert not request.changed


def test_each_mode_has_its_own_way_to_show_tools() -> None:
    assert shape([], TOOLS, NATIVE).body == {"tools": TOOLS, "parallel_tool_calls": False}
    unknown = Capabilities(tool_mode="native", parallel_tools=None)
    assert shape([], TOOLS, unknown).body == {"tools": TOOLS}
    assert shape([], TOOLS, FENCED).body == {}
    assert shape([], [], SCHEMA).body == {}
    asked = shape([], TOOLS, SCHEMA).body["response_format"]
    assert asked["json_schema"]["schema"] == action_schema(TOOLS)


def test_blocks_of_code_are_for_tools_that_run_code() -> None:
    assert mode_for(FENCED, TOOLS) == "fenced"
    assert mode_for(FENCED, [FINISH]) == "fenced"
    assert mode_for(FENCED, [SEARCH, FINISH]) == "schema"
    assert mode_for(NATIVE, [SEARCH]) == "native"


def test_the_result_of_a_call_written_as_text_is_told_by_the_user() -> None:
    chat = [
        {"role": "assistant", "content": '{"name": "run_python"}'},
        {"role": "tool", "tool_call_id": "call_x", "content": "42"},
    ]
    request = shape(chat, TOOLS, NATIVE)
    assert request.changed
    assert request.messages[1] == {"role": "user", "content": "42"}
    assert chat[1]["role"] == "tool"


def test_unreadable_arguments_do_not_go_out_again() -> None:
    good = {"id": "a", "function": {"name": "finish", "arguments": '{"answer": "1"}'}}
    broken = {"id": "b", "x": 1, "function": {"name": "run_python", "arguments": '{"code": '}}
    chat = [{"role": "assistant", "tool_calls": [good, broken]}]
    request = shape(chat, TOOLS, NATIVE)
    assert request.changed
    sent = request.messages[0]["tool_calls"]
    assert sent[0] == good
    assert sent[1] == {"id": "b", "x": 1, "function": {"name": "run_python", "arguments": "{}"}}
    assert broken["function"]["arguments"] == '{"code": '


def test_the_examples_are_answers_the_schema_allows() -> None:
    for tools in (TOOLS, [SEARCH, FINISH], [SEARCH, RUN_PYTHON], [FINISH]):
        turns = examples(tools)
        validator = Draft202012Validator(action_schema(tools))
        assert [turn["role"] for turn in turns[:2]] == ["user", "assistant"]
        for turn in turns[1::2]:
            validator.validate(json.loads(turn["content"]))
            assert read_answer(turn, "stop", "schema", tools).calls[0].error is None
    assert len(examples(TOOLS)) == 4
