"""The seam between the episode loop and whoever decides the next step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from common.llm.types import Source, ToolMode
from common.task import Assignment
from common.trajectory import Action, Agent, Usage
from workers.tools import Toolbox, ToolOutput


@dataclass(frozen=True)
class Turn:
    """One decision: what was said, and the calls read from it."""

    message: dict[str, Any]
    """The assistant message, as it goes into the chat."""
    actions: tuple[Action, ...]
    objection: str | None = None
    """Why the answer could not be used, in words the model is shown."""
    thought: str = ""
    usage: Usage = Usage()
    parse: Any = "scripted"
    throttled: float = 0.0
    sent: tuple[dict[str, Any], ...] = ()
    """The chat as it really went out, where that is not as it was given."""
    source: Source | None = None
    """Who served the model; None where none was asked."""
    replayed: bool = False
    """The answer is an earlier attempt's, asked for with this very request."""
    waited: float = 0.0
    """Seconds our own journal took: not the agent's time."""

    @property
    def native_ids(self) -> list[str]:
        """Ids of the tool calls in the message: each needs a result in the chat."""
        return [str(call["id"]) for call in self.message.get("tool_calls") or ()]


class Policy(Protocol):
    """Decides. Raises the model client's errors; those of infrastructure end the episode."""

    @property
    def mode(self) -> ToolMode: ...

    @property
    def view_chars(self) -> int:
        """Characters of one result this policy is shown."""
        ...

    def show(self, toolbox: Toolbox) -> Toolbox:
        """Return the tools this policy can use."""
        ...

    def examples(self, toolbox: Toolbox) -> list[dict[str, Any]]:
        """Return worked turns to put after the system message; usually none."""
        ...

    async def act(self, chat: list[dict[str, Any]], toolbox: Toolbox, *, deadline: float) -> Turn:
        """Decide the next step within ``deadline`` seconds, waits for rate limits not counted."""
        ...

    def concludes(self, action: Action, output: ToolOutput) -> str | None:
        """Return the final answer if this result ends the episode by itself; None if not."""
        ...

    @property
    def agent(self) -> Agent: ...


class PolicyFactory(Protocol):
    def __call__(self, assignment: Assignment, *, attempt_id: str) -> Policy:
        """Raises `FleetError` where nothing can be begun: the task is a dead letter at once."""
        ...
