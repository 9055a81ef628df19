"""Reading an action out of an answer, by tool mode."""

from __future__ import annotations

from typing import Any

import pytest

from common.llm.parse import Answer, read_answer, read_arguments, with_ids
from common.llm.types import ToolMode
from tests.common.llm.conftest import FINISH, RUN_PYTHON, TOOLS

SHELL = {
    "function": {
        "name": "run_shell",
        "parameters": {"type": "object", "properties": {"command": {"type": "string"}}},
    }
}


def read(content: Any, mode: ToolMode = "native", *, cut: bool = False, **message: Any) -> Answer:
    reason = "length" if cut else "stop"
    return read_answer(
        {"role": "assistant", "content": content, **message}, reason, mode, [*TOOLS, SHELL]
    )


def native(arguments: Any, name: str = "run_python") -> list[dict[str, Any]]:
    return [{"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}]


def test_native_calls_are_read_in_order() -> None:
    calls = [*native('{"code": "1"}'), *native('{"answer": "2"}', "finish")]
    answer = read("", tool_calls=calls)
    assert [(c.tool, c.arguments) for c in answer.calls] == [
        ("run_python", {"code": "1"}),
        ("finish", {"answer": "2"}),
    ]
    assert answer.parse == "native"


@pytest.mark.parametrize("arguments", ["", None, "{}", {}])
def test_no_arguments_are_an_empty_object(arguments: Any) -> None:
    (call,) = read("", tool_calls=native(arguments)).calls
    assert (call.arguments, call.error) == ({}, None)


@pytest.mark.parametrize(
    "arguments",
    [
        '{"code": ', "[1]", '"text"', "NaN", '{"n": NaN}', "print(1)", '{"code": "a" "b"}',
        '{"n": 123456789012345678901234567890}', '{"n": 1e999}', '{"s": "\\ud83d"}',
        "[" * 100_000, '{"a":' * 100 + "1" + "}" * 100,
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_kept_as_they_are_become_an_error(arguments: str) -> None:
    (call,) = read("", tool_calls=native(arguments)).calls
    assert call.error
    assert call.arguments == {}


def test_every_call_of_a_cut_off_answer_is_an_error() -> None:
    calls = [*native('{"code": "1"}'), *native('{"code": "2')]
    assert all(c.error for c in read("", cut=True, tool_calls=calls).calls)


def test_a_call_without_an_id_gets_one_in_the_message_too() -> None:
    message = with_ids({"tool_calls": [{"function": {"name": "finish", "arguments": "{}"}}]})
    (call,) = read_answer(message, "tool_calls", "native", TOOLS).calls
    assert call.call_id
    assert call.call_id == message["tool_calls"][0]["id"]


@pytest.mark.parametrize(
    "text",
    [
        'I run it.\n```json\n{"name": "run_python", "arguments": {"code": "1"}}\n```',
        '{"tool": "run_python", "arguments": {"code": "1"}} That is it.',
        'Ok. <tool_call>\n{"name": "run_python", "arguments": {"code": "1"}}\n</tool_call>',
        '<tool_call>{"name": "run_python", "arguments": "{\\"code\\": \\"1\\"}"}',
        '```\n{"name": "run_python", "parameters": {"code": "1"}}\n```',
        '<think>Maybe <tool_call>{"name": "x"}</tool_call>?</think>'
        '<tool_call>{"name": "run_python", "arguments": {"code": "1"}}</tool_call>',
    ],
)
def test_calls_written_as_text_are_found_and_marked(text: str) -> None:
    answer = read(text)
    (call,) = answer.calls
    assert (call.tool, call.arguments, call.error) == ("run_python", {"code": "1"}, None)
    assert answer.parse == "fallback"


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 42.", "", '```json\n{"name": "someone", "arguments": {}}\n```',
        'Such a call looks like {"name": "run_python", "arguments": {}}, I believe.',
        "```python\nprint(1)\n```", '```json\n{"name": \n```', "{", "{" * 10_000,
    ],
)  # fmt: skip
def test_prose_is_not_taken_for_a_call(text: str) -> None:
    answer = read(text)
    assert answer.calls == ()
    assert answer.parse == "native"


def test_a_broken_tagged_call_is_an_error_the_model_can_see() -> None:
    (call,) = read('<tool_call>{"name": "run_python", "arguments": {"code": "1', cut=True).calls
    assert (call.tool, call.arguments) == ("run_python", {})
    assert "cut off" in (call.error or "")


def test_text_is_not_searched_when_no_tools_were_shown() -> None:
    text = '{"name": "run_python", "arguments": {}}'
    assert read_answer({"content": text}, "stop", "native", []).calls == ()


def test_schema_answers_carry_thought_and_call() -> None:
    answer = read('{"thought": "Easy.", "tool": "finish", "arguments": {"answer": "4"}}', "schema")
    assert answer.thought == "Easy."
    assert [(c.tool, c.arguments) for c in answer.calls] == [("finish", {"answer": "4"})]
    assert answer.parse == "schema"


def test_a_cut_off_schema_answer_is_an_error() -> None:
    text = '{"thought": "Hm", "tool": "run_python", "arguments": {"code": "impo'
    (call,) = read(text, "schema", cut=True).calls
    assert call.tool == "run_python"
    assert "cut off" in (call.error or "")
    assert read("I would rather not.", "schema").calls == ()


@pytest.mark.parametrize(
    ("language", "tool", "argument"),
    [("python", "run_python", "code"), ("py", "run_python", "code"),
     ("bash", "run_shell", "command"), ("Shell", "run_shell", "command")],
)  # fmt: skip
def test_the_first_block_of_code_is_the_call(language: str, tool: str, argument: str) -> None:
    text = f"First this.\n\n```{language}\nline 1\nline 2\n```\nThen:\n```python\nprint(2)\n```"
    answer = read(text, "fenced")
    assert [(c.tool, c.arguments) for c in answer.calls] == [(tool, {argument: "line 1\nline 2\n"})]
    assert (answer.thought, answer.parse) == ("First this.", "fenced")


def test_other_blocks_are_passed_over() -> None:
    text = "```text\nnot code\n```\nand\n```\nneither\n```\n```python\nprint('```')\n```"
    (call,) = read(text, "fenced").calls
    assert call.arguments == {"code": "print('```')\n"}
    assert read("```text\nno code\n```", "fenced").calls == ()
    assert read("DONE: 42", "fenced").calls == ()


def test_an_unclosed_block_counts_only_if_the_model_was_not_cut_off() -> None:
    (whole,) = read("```python\nprint(1)", "fenced").calls
    assert whole.arguments == {"code": "print(1)"}
    (cut,) = read("```python\nprint(1)", "fenced", cut=True).calls
    assert cut.arguments == {}
    assert "cut off" in (cut.error or "")
    (closed,) = read("```python\nprint(1)\n```\nAnd so on and", "fenced", cut=True).calls
    assert closed.error is None


def test_a_block_for_a_tool_that_is_not_there_is_no_call() -> None:
    message = {"content": "```bash\nls\n```"}
    assert read_answer(message, "stop", "fenced", [RUN_PYTHON, FINISH]).calls == ()


def test_thoughts_are_kept_apart_from_the_text() -> None:
    answer = read("<think>Two and two.</think>\n\nFour.")
    assert (answer.thought, answer.text) == ("Two and two.", "Four.")
    assert read("x", reasoning_content="Hm.").thought == "Hm."
    assert read([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]).text == "ab"
    assert read(None).text == ""


def test_good_arguments_come_through_unchanged() -> None:
    text = '{"code": "print(\\"ü\\")", "n": -9223372036854775808, "deep": [{"x": [1.5, null]}]}'
    arguments, error = read_arguments(text)
    assert error is None
    assert arguments == {"code": 'print("ü")', "n": -(2**63), "deep": [{"x": [1.5, None]}]}


@pytest.mark.parametrize("calls", [5, True, "x", {"id": "1"}])
def test_tool_calls_that_are_no_list_are_no_calls(calls: object) -> None:
    assert read("hello", tool_calls=calls).calls == ()
