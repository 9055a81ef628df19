"""A model whose answers survive the worker that asked for them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from common.llm.types import ToolMode
from common.trajectory import Action, Agent
from workers.journal import Journal
from workers.policies.base import Turn
from workers.policies.model import ModelPolicy
from workers.tools import Toolbox, ToolOutput


class Journaled:
    """Gives the answers again that an earlier attempt paid for; keeps each new one before it is
    acted upon.

    There is no case for an action that turned out differently this time: the chat differs then, so
    the request does, and it is asked.
    """

    def __init__(self, policy: ModelPolicy, journal: Journal) -> None:
        self._policy = policy
        self._journal = journal

    @property
    def mode(self) -> ToolMode:
        return self._policy.mode

    @property
    def view_chars(self) -> int:
        return self._policy.view_chars

    @property
    def agent(self) -> Agent:
        return self._policy.agent

    def show(self, toolbox: Toolbox) -> Toolbox:
        return self._policy.show(toolbox)

    def examples(self, toolbox: Toolbox) -> list[dict[str, Any]]:
        return self._policy.examples(toolbox)

    def concludes(self, action: Action, output: ToolOutput) -> str | None:
        return self._policy.concludes(action, output)

    async def act(self, chat: list[dict[str, Any]], toolbox: Toolbox, *, deadline: float) -> Turn:
        request = self._policy.request(chat, toolbox)
        clock = time.monotonic()
        turn = await self._journal.find(request)
        waited = time.monotonic() - clock
        if turn is not None:
            self._policy.recall(turn)
            # Nobody waited for a rate limit this time, so no time is to be given back for it.
            return replace(turn, replayed=True, throttled=0.0, waited=waited)
        turn = await self._policy.act(chat, toolbox, deadline=deadline)
        clock = time.monotonic()
        await self._journal.keep(request, turn)
        return replace(turn, waited=waited + time.monotonic() - clock)
