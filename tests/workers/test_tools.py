"""Calls are checked before anything runs, and what is said of them stays short."""

from __future__ import annotations

from common.llm.parse import read_answer
from common.trajectory import Action
from workers.tools import Tool, Toolbox, parameters

BOX = Toolbox.of(
    [Tool("tap", "Tap.", parameters(["x"], x={"type": "integer"}))], first=(), only=False
)


def test_an_unknown_tool_is_named_with_the_known_ones_however_long_its_name() -> None:
    said = BOX.objection(Action(tool="z" * 5000, arguments={}, call_id="1"))
    assert said is not None
    assert "the tools are: tap, finish" in said
    assert len(said) < 200


def test_wrong_arguments_are_named() -> None:
    said = BOX.objection(Action(tool="tap", arguments={"x": "1", "y": 2}, call_id="1"))
    assert said is not None
    assert "x: '1' is not of type 'integer'" in said
    assert "'y' was unexpected" in said
    assert BOX.objection(Action(tool="tap", arguments={"x": 1}, call_id="1")) is None


def test_a_thought_that_could_not_be_stored_is_the_models_error_not_ours() -> None:
    content = '{"thought": "\\ud83d", "tool": "tap", "arguments": {"x": 1}}'
    answer = read_answer({"role": "assistant", "content": content}, "stop", "schema", BOX.schemas)
    assert answer.thought == ""
    [call] = answer.calls
    assert "surrogate" in (call.error or "")
