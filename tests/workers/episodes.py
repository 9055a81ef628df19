"""What plays in an episode: a world that does what the test says, and a policy with a script."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from common.llm.types import ToolMode
from common.trajectory import Action, Agent, EnvironmentInfo, Step, Verdict
from workers.policies.base import Turn
from workers.tools import Tool, Toolbox, ToolOutput, parameters

PASSED = Verdict(passed=True, reward=1.0)
RUN = Tool("run", "Run it.", parameters(["code"], code={"type": "string"}))
LOOK = Tool("look", "Look.", parameters())


class World:
    """An environment in memory. ``outputs``: what calls return, or raise, in order."""

    def __init__(
        self,
        outputs: Iterable[ToolOutput | Exception] = (),
        *,
        verdict: Verdict | Exception = PASSED,
        sight: str | Exception = "",
        start: Exception | None = None,
    ) -> None:
        self.tools = Toolbox.of([RUN, LOOK], first=(), only=False)
        self.info = EnvironmentInfo(backend="memory", limits={"pids": 8})
        self.called: list[tuple[str, dict[str, Any], float]] = []
        self.verified: list[tuple[str, int]] = []
        self.closed = 0
        self._outputs = iter(outputs)
        self._verdict, self._sight, self._start = verdict, sight, start

    async def reset(self) -> str:
        if isinstance(self._sight, Exception):
            raise self._sight
        return self._sight

    async def call(self, action: Action, *, timeout: float) -> ToolOutput:
        self.called.append((action.tool, action.arguments, timeout))
        output = next(self._outputs, ToolOutput("done"))
        if isinstance(output, Exception):
            raise output
        return output

    async def verify(self, answer: str, steps: list[Step]) -> Verdict:
        self.verified.append((answer, len(steps)))
        if isinstance(self._verdict, Exception):
            raise self._verdict
        return self._verdict

    # As a scene of one world.
    name = "memory"

    @asynccontextmanager
    async def environment(self, _: object, *, labels: dict[str, str]) -> AsyncIterator[World]:
        assert labels == {"task": "t", "attempt": "a1"}
        if self._start is not None:
            raise self._start
        try:
            yield self
        finally:
            self.closed += 1


class Clock(SimpleNamespace):
    """The episode's time; it moves when a test says so."""

    def __init__(self) -> None:
        super().__init__(now=1000.0)

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1_700_000_000


Said = Turn | Exception | Callable[[], Turn]
Run = Callable[..., Any]


class Script:
    """A policy that plays turns and keeps every chat it was shown."""

    def __init__(
        self, *turns: Said, mode: ToolMode = "native", view_chars: int = 16_000,
        concludes: Callable[[Action, ToolOutput], str | None] = lambda *_: None,
    ) -> None:  # fmt: skip
        self.mode = mode
        self.view_chars = view_chars
        self.concludes = concludes
        self.agent = Agent(kind="llm", model="m", model_source="standin")
        self.worked: list[dict[str, Any]] = []
        self.shown: list[list[dict[str, Any]]] = []
        self.deadlines: list[float] = []
        self._turns = iter(turns)

    def show(self, toolbox: Toolbox) -> Toolbox:
        return toolbox

    def examples(self, toolbox: Toolbox) -> list[dict[str, Any]]:
        return self.worked

    async def act(self, chat: list[dict[str, Any]], toolbox: Toolbox, *, deadline: float) -> Turn:
        self.shown.append(copy.deepcopy(chat))
        self.deadlines.append(deadline)
        turn = next(self._turns, None) or says(finish())
        if isinstance(turn, Exception):
            raise turn
        return turn if isinstance(turn, Turn) else turn()


def call(tool: str = "run", /, _id: str = "c1", **arguments: Any) -> Action:
    if tool == "run":
        arguments = {"code": "1", **arguments}
    return Action(tool=tool, arguments=arguments, call_id=_id)


def finish(answer: str = "", _id: str = "end") -> Action:
    return Action(tool="finish", arguments={"answer": answer}, call_id=_id)


def says(*actions: Action, native: bool = True, **fields: Any) -> Turn:
    """A model's turn with these calls, native ones unless told otherwise."""
    message: dict[str, Any] = {"role": "assistant", "content": fields.get("thought", "")}
    if native and actions:
        message["tool_calls"] = [
            {"id": a.call_id, "type": "function", "function": {"name": a.tool}} for a in actions
        ]
    return Turn(message=message, actions=actions, **fields)


def gibberish(reason: str = "it calls no tool") -> Turn:
    return says(objection=reason)


def after(clock: Clock, seconds: float, said: Turn | Exception) -> Callable[[], Turn]:
    """The same, once ``seconds`` have gone by."""

    def later() -> Turn:
        clock.now += seconds
        if isinstance(said, Exception):
            raise said
        return said

    return later
