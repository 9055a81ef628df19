"""Reads an action out of a model's answer, whichever way the model was asked to write it.

Nothing here guesses: what cannot be read, or was cut off, becomes a call with an `error`, which is
shown to the model and never run.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from common.llm.types import ModelCall, Parse, ToolMode

CUT_OFF = "the answer was cut off at the token limit, so this call is incomplete: write less"

_THINK = re.compile(r"\s*<think>(.*?)(?:</think>|\Z)", re.S)
_FENCE = re.compile(r"^[ \t]*```(\w*)[^\n`]*\n(.*?)(^[ \t]*```[ \t]*$|\Z)", re.S | re.M)
_TAG = re.compile(r"<tool_call>(.*?)(</tool_call>|\Z)", re.S)
_NAME = re.compile(r'"(?:name|tool)"\s*:\s*"([\w.\-]{1,64})"')
LANGUAGES = {
    "python": "run_python", "python3": "run_python", "py": "run_python",
    "bash": "run_shell", "sh": "run_shell", "shell": "run_shell", "zsh": "run_shell",
}  # fmt: skip
"""Of a block of code, and the tool that runs it."""
_DEEPEST = 64  # levels of JSON; deeper ones are no arguments of a tool


@dataclass(frozen=True)
class Answer:
    """What an assistant message says and asks for."""

    text: str
    thought: str
    calls: tuple[ModelCall, ...]
    parse: Parse


def read_answer(
    message: dict[str, Any], finish_reason: str, mode: ToolMode, tools: list[dict[str, Any]]
) -> Answer:
    """Read one assistant message. ``tools``: the schemas the model was shown."""
    inner, text = _split_thought(_text(message))
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    thought = reasoning if isinstance(reasoning, str) else inner
    cut = finish_reason == "length"
    if mode == "schema":
        said, calls = _from_schema(text, cut)
        return Answer(text, thought or said, calls, "schema")
    if mode == "fenced":
        before, calls = _from_fence(text, cut, tools)
        return Answer(text, thought or before, calls, "fenced")
    if native := _native(message, cut):
        return Answer(text, thought or text, native, "native")
    if tools and (found := _from_text(text, cut, tools)):
        return Answer(text, thought or text.split("<tool_call>")[0].strip(), found, "fallback")
    return Answer(text, thought, (), "native")


def with_ids(message: dict[str, Any]) -> dict[str, Any]:
    """Return the message with an id in every tool call: results must be able to name theirs."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or all(isinstance(c, dict) and c.get("id") for c in calls):
        return message
    calls = [
        {**call, "id": call.get("id") or _new_id()} for call in calls if isinstance(call, dict)
    ]
    return {**message, "tool_calls": calls}


def read_arguments(raw: Any) -> tuple[dict[str, Any], str | None]:
    """Return a tool's arguments as an object, or an error for the model that names the reason."""
    if isinstance(raw, str):
        try:
            raw = json.loads(raw or "{}", parse_constant=_reject)  # "" is common for no arguments
        except (ValueError, RecursionError) as error:
            return {}, f"the arguments are not valid JSON: {error}"
    if not isinstance(raw, dict):
        return {}, f"the arguments must be a JSON object, not {type(raw).__name__}"
    if reason := _unstorable(raw):
        return {}, f"the arguments hold {reason}"
    return raw, None


def name_of(tool: dict[str, Any]) -> str:
    """Return the name in an OpenAI function schema."""
    return str(tool.get("function", {}).get("name", ""))


def text_argument(tool: dict[str, Any]) -> str | None:
    """Return the name of the one text a tool takes (`code`, `command`, `answer`), if it has one."""
    parameters = tool.get("function", {}).get("parameters", {})
    texts = [name for name, kind in parameters.get("properties", {}).items() if _is_text(kind)]
    required = [name for name in texts if name in parameters.get("required", ())]
    return next(iter(required or texts), None)


def _native(message: dict[str, Any], cut: bool) -> tuple[ModelCall, ...]:
    calls = []
    listed = message.get("tool_calls")
    for item in listed if isinstance(listed, list) else ():
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(function, dict):
            continue
        raw = function.get("arguments")
        calls.append(
            _call(str(function.get("name") or ""), raw, cut, str(item.get("id") or _new_id()))
        )
    return tuple(calls)


def _from_schema(text: str, cut: bool) -> tuple[str, tuple[ModelCall, ...]]:
    """Read `{"thought": …, "tool": …, "arguments": {…}}`."""
    found = _json_object(text)
    if found is not None and isinstance(found.get("tool"), str):
        if reason := _unstorable([found["tool"], found.get("thought")]):
            error = f"the answer holds {reason}"
            return "", (ModelCall(call_id=_new_id(), tool="", raw_arguments=text, error=error),)
        thought = found.get("thought")
        call = _call(found["tool"], found.get("arguments"), cut=False)
        return thought if isinstance(thought, str) else "", (call,)
    return "", _unreadable(text, cut)


def _from_fence(
    text: str, cut: bool, tools: list[dict[str, Any]]
) -> tuple[str, tuple[ModelCall, ...]]:
    """Read the first block of code. Without one there is no call: the text may be the answer."""
    shown = {name_of(tool): tool for tool in tools}
    for fence in _FENCE.finditer(text):
        tool = LANGUAGES.get(fence[1].lower(), "")
        if tool not in shown:
            continue
        argument = text_argument(shown[tool]) or "code"
        incomplete = cut and not fence[3]  # a block that was closed is whole, whatever follows
        call = ModelCall(
            call_id=_new_id(), tool=tool, arguments={} if incomplete else {argument: fence[2]},
            raw_arguments=fence[2], error=CUT_OFF if incomplete else None,
        )  # fmt: skip
        return text[: fence.start()].strip(), (call,)
    return "", ()


def _from_text(text: str, cut: bool, tools: list[dict[str, Any]]) -> tuple[ModelCall, ...]:
    """Find calls that a model asked for native ones wrote into its text instead."""
    tagged: list[ModelCall] = []
    for tag in _TAG.finditer(text):
        found = _json_object(tag[1])
        name = found and (found.get("name") or found.get("tool"))
        if found is None or not isinstance(name, str):
            tagged += _unreadable(tag[1], cut and not tag[2])
        else:
            tagged.append(_call(name, _arguments_in(found), cut=False))
    if tagged:
        return tuple(tagged)
    # Without a tag it may be an example in prose: only the name of a tool we showed counts.
    shown = {name_of(tool) for tool in tools}
    for candidate in _candidates(text):
        found = _json_object(candidate)
        name = found and (found.get("name") or found.get("tool"))
        if found is not None and isinstance(name, str) and name in shown:
            return (_call(name, _arguments_in(found), cut=False),)
    return ()


def _candidates(text: str) -> Iterator[str]:
    for fence in _FENCE.finditer(text):
        if fence[1].lower() in ("json", "", "tool_call"):
            yield fence[2]
    if text.lstrip().startswith("{"):
        yield text


def _arguments_in(found: dict[str, Any]) -> Any:
    return next((found[key] for key in ("arguments", "parameters", "args") if key in found), {})


def _unreadable(text: str, cut: bool) -> tuple[ModelCall, ...]:
    """Return a call that only carries an error, where at least the tool's name can be seen."""
    name = _NAME.search(text)
    if name is None:
        return ()
    error = CUT_OFF if cut else "the call is not valid JSON"
    return (ModelCall(call_id=_new_id(), tool=name[1], raw_arguments=text, error=error),)


def _call(tool: str, raw: Any, cut: bool, call_id: str | None = None) -> ModelCall:
    arguments, error = read_arguments("{}" if raw is None else raw)
    if cut:
        arguments, error = {}, CUT_OFF
    elif not tool:
        arguments, error = {}, "the call names no tool"
    return ModelCall(
        call_id=call_id or _new_id(), tool=tool, arguments=arguments, error=error,
        raw_arguments=raw if isinstance(raw, str) else json.dumps(raw),
    )  # fmt: skip


def _json_object(text: str) -> dict[str, Any] | None:
    """Return the object that ``text`` starts with; words after it do not matter."""
    start = text.find("{")
    if start < 0 or text[:start].strip("`json \n\t"):
        return None
    try:
        found, _ = json.JSONDecoder(parse_constant=_reject).raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _unstorable(value: Any, depth: int = 0) -> str | None:
    """Say what in ``value`` could not be written to a trajectory as it is."""
    if isinstance(value, dict | list):
        if depth == _DEEPEST:
            return f"more than {_DEEPEST} levels"
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return next((bad for part in parts if (bad := _unstorable(part, depth + 1))), None)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "a number beyond 64 bits: pass it as text"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "a number too large: pass it as text"
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            return "half of a surrogate pair, which is no character"
    return None


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):  # some servers answer in parts
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _split_thought(text: str) -> tuple[str, str]:
    """Part a leading `<think>` block from the visible text."""
    block = _THINK.match(text)
    return (block[1].strip(), text[block.end() :].lstrip()) if block else ("", text)


def _is_text(kind: Any) -> bool:
    return isinstance(kind, dict) and kind.get("type") == "string"


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex[:16]}"


def _reject(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
