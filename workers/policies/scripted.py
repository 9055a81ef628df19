"""The agents that need no model: the oracle plays the reference, nop does nothing.

They prove tasks (`fleet validate`), and carry the whole fleet through tests and benchmarks.
"""

from __future__ import annotations

from typing import Any, Literal

import orjson

from common.llm.types import ToolMode
from common.task import Reference
from common.trajectory import Action, Agent
from workers.policies.base import Turn
from workers.tools import FINISH, Toolbox, ToolOutput


class ScriptedPolicy:
    """Plays a list of actions, then finishes."""

    mode: ToolMode = "native"
    view_chars = 16_000

    def __init__(self, kind: Literal["oracle", "nop"], reference: Reference | None) -> None:
        self.agent = Agent(kind=kind)
        actions = reference.actions if reference is not None and kind == "oracle" else ()
        answer = reference.answer if reference is not None and kind == "oracle" else ""
        self._script: list[tuple[str, dict[str, Any]]] = [
            *((a.tool, dict(a.arguments)) for a in actions),
            (FINISH, {"answer": answer}),
        ]
        self._at = 0

    def show(self, toolbox: Toolbox) -> Toolbox:
        return toolbox

    def examples(self, toolbox: Toolbox) -> list[dict[str, Any]]:
        return []

    def concludes(self, action: Action, output: ToolOutput) -> str | None:
        return None

    async def act(self, chat: list[dict[str, Any]], toolbox: Toolbox, *, deadline: float) -> Turn:
        # A refused finish (say, after a failing action) is simply said again.
        tool, arguments = self._script[min(self._at, len(self._script) - 1)]
        self._at += 1
        action = Action(tool=tool, arguments=arguments, call_id=f"call_{self._at:04d}")
        call = {
            "id": action.call_id,
            "type": "function",
            "function": {"name": tool, "arguments": orjson.dumps(arguments).decode()},
        }
        message = {"role": "assistant", "content": "", "tool_calls": [call]}
        return Turn(message=message, actions=(action,))
