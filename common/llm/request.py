"""Turns a chat and its tools into the request a model understands best, by its tool mode.

The chat goes out as it is given, so that the chat a trajectory holds is what the model saw. The
one exception is what servers choke on (`_readable`), and that is reported back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import orjson

from common.llm.parse import LANGUAGES, name_of, text_argument
from common.llm.types import Capabilities, ToolMode

Message = dict[str, Any]
Tool = dict[str, Any]

FINISH = "finish"


@dataclass(frozen=True)
class Request:
    """The part of a request's body that depends on the tool mode."""

    mode: ToolMode
    messages: list[Message]
    changed: bool
    """The messages are not exactly those given."""
    body: dict[str, Any] = field(default_factory=dict)
    """Tools or response format."""


def shape(messages: list[Message], tools: list[Tool], capabilities: Capabilities) -> Request:
    """Return what to send. The messages given are never modified."""
    mode = mode_for(capabilities, tools)
    sent = _readable(messages)
    body: dict[str, Any] = {}
    if tools and mode == "native":
        body["tools"] = tools
        if capabilities.parallel_tools is not None:
            body["parallel_tool_calls"] = capabilities.parallel_tools
    elif tools and mode == "schema":
        schema = {"name": "action", "schema": action_schema(tools), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return Request(mode, sent, changed=sent != messages, body=body)


def mode_for(capabilities: Capabilities, tools: list[Tool]) -> ToolMode:
    """Return the mode for these tools: blocks of code only where there is code to run.

    A model that is best asked for blocks of code can still choose among other tools by schema.
    """
    names = {name_of(tool) for tool in tools} - {FINISH}
    if capabilities.tool_mode == "fenced" and names and names.isdisjoint(LANGUAGES.values()):
        return "schema"
    return capabilities.tool_mode


def action_schema(tools: list[Tool]) -> dict[str, Any]:
    """Return the JSON schema of one action: a thought, and a call of one of ``tools``."""
    choices = [
        {
            "type": "object",
            "properties": {
                "thought": {"type": "string"},
                "tool": {"const": name_of(tool)},
                "arguments": tool.get("function", {}).get("parameters", {"type": "object"}),
            },
            "required": ["thought", "tool", "arguments"],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    return choices[0] if len(choices) == 1 else {"anyOf": choices}


def encode(body: dict[str, Any]) -> bytes:
    """Return a request's body as JSON."""
    try:
        return orjson.dumps(body)  # a twentieth of the time of `json`, on the event loop
    except TypeError:  # half a surrogate pair, or an integer beyond 64 bits
        return json.dumps(body).encode()


def examples(tools: list[Tool]) -> list[Message]:
    """Return two worked turns of the `schema` mode with the tools at hand, for after the system
    prompt: one that uses a tool, and one that finishes (or uses another tool)."""
    finish = [tool for tool in tools if name_of(tool) == FINISH]
    others = [tool for tool in tools if name_of(tool) != FINISH]
    turns: list[Message] = []
    asks = ("Example: begin a task.", "Example: the result is 42. Go on.")
    for tool, ask in zip([*others[:1], *finish, *others[1:]][:2], asks, strict=False):
        thought = "The task is done." if tool in finish else "This tool fits."
        action = {"thought": thought, "tool": name_of(tool), "arguments": _sample(tool)}
        turns.append({"role": "user", "content": ask})
        turns.append({"role": "assistant", "content": json.dumps(action)})
    return turns


def _sample(tool: Tool) -> dict[str, Any]:
    """Return plausible arguments for an example turn."""
    parameters = tool.get("function", {}).get("parameters", {})
    values: dict[str, Any] = {"string": "42", "integer": 42, "number": 42, "boolean": True}
    main = text_argument(tool)
    return {
        name: kind["enum"][0] if kind.get("enum") else values.get(str(kind.get("type")), [])
        for name, kind in parameters.get("properties", {}).items()
        if name in parameters.get("required", ()) or name == main
    }


def _readable(messages: list[Message]) -> list[Message]:
    """Rewrite what servers choke on: results of calls they never saw, and broken arguments.

    A result belongs to a native call in the turn before it; one of a call that was written as text
    is told as a user's message. Arguments that are not JSON make some servers refuse the whole
    chat (their templates parse them), so they go out empty: the complaint that follows shows why.
    """
    result: list[Message] = []
    announced: set[Any] = set()
    for message in messages:
        if message.get("role") == "assistant":
            calls = [call for call in message.get("tool_calls") or () if isinstance(call, dict)]
            announced = {call.get("id") for call in calls}
            result.append(_with_readable_arguments(message, calls))
        elif message.get("role") == "tool" and message.get("tool_call_id") not in announced:
            result.append({"role": "user", "content": message.get("content")})
        else:
            result.append(message)
    return result


def _with_readable_arguments(message: Message, calls: list[Any]) -> Message:
    if all(_is_readable(call) for call in calls):
        return message
    repaired = [
        call
        if _is_readable(call)
        else {**call, "function": {**call.get("function", {}), "arguments": "{}"}}
        for call in calls
    ]
    return {**message, "tool_calls": repaired}


def _is_readable(call: Any) -> bool:
    function = call.get("function")
    raw = function.get("arguments", "{}") if isinstance(function, dict) else None
    try:
        return isinstance(orjson.loads(raw) if isinstance(raw, str) else raw, dict)
    except orjson.JSONDecodeError:
        return False
