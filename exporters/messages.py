"""The chat of a trajectory as OpenAI messages: the one form every trainer can be fed from.

Nothing is shortened and nothing invented. What cannot be said in this form makes the row
`NotExportable`, which the exporter counts by reason, instead of a row that teaches something else.
"""

from __future__ import annotations

import json
from typing import Any

from common.trajectory import Trajectory

Message = dict[str, Any]


class NotExportable(ValueError):
    """This trajectory has no faithful row in this format; ``reason`` is a short, countable name."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def openai_messages(trajectory: Trajectory) -> list[Message]:
    """Return the chat with roles system, user, assistant and tool.

    `arguments` are JSON text (as the API and DeepSeek-style templates want them), `content` is
    always a string (templates without tools fail on null), thoughts stay as `reasoning_content`.
    """
    messages: list[Message] = []
    asked: set[str] = set()
    for place, message in enumerate(trajectory.messages):
        match message.get("role"):
            case "system" | "developer":
                messages.append({"role": "system", "content": _text(message, place)})
            case "user":
                messages.append({"role": "user", "content": _text(message, place)})
            case "assistant":
                said = _assistant(message, place)
                asked.update(call["id"] for call in said.get("tool_calls", ()))
                messages.append(said)
            case "tool":
                call_id = message.get("tool_call_id")
                if call_id not in asked:
                    raise NotExportable(
                        "orphan_tool_result", f"message {place} answers no call: {call_id!r}"
                    )
                text = _text(message, place)
                messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
            case other:
                raise NotExportable("unknown_role", f"message {place} has role {other!r}")
    if not any(message["role"] == "assistant" for message in messages):
        raise NotExportable("no_assistant", "no message to learn from")
    return messages


def openai_tools(trajectory: Trajectory) -> list[dict[str, Any]]:
    """Return the tools as the model was shown them, beside the chat.

    Empty, never null, where the tools were part of the text (fenced or schema-constrained
    answers): a chat template would otherwise put them into the prompt a second time.
    """
    if trajectory.steps and all(step.parse in ("fenced", "schema") for step in trajectory.steps):
        return []
    return list(trajectory.tools)


def _assistant(message: Message, place: int) -> Message:
    said: Message = {"role": "assistant", "content": _text(message, place)}
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought:
        said["reasoning_content"] = thought
    calls = message.get("tool_calls") or []
    if calls:
        said["tool_calls"] = [_call(call, place) for call in calls]
    return said


def _call(call: Any, place: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not call.get("id") or not function.get("name"):
        raise NotExportable("malformed_call", f"message {place} has a call without id or name")
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    arguments = arguments or "{}"  # what providers send for a tool without parameters
    try:
        readable = isinstance(json.loads(arguments), dict)
    except (TypeError, ValueError, RecursionError):
        readable = False
    if not readable:
        # Trainers parse them: one such row would stop a whole run, or be taught as it is.
        raise NotExportable(
            "malformed_arguments", f"message {place}, call {call['id']}: no JSON object"
        )
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _text(message: Message, place: int) -> str:
    """Return the content as one string; text parts are joined, other media have no place here."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise NotExportable("not_text", f"message {place} holds more than text")
        texts.append(part["text"])
    return "".join(texts)
