"""A model that plays replies, and a journaled policy that asks it."""

from __future__ import annotations

from typing import Any

from common.llm.types import Capabilities, ModelCall, ModelReply, Source
from common.queue.connection import Server
from common.queue.keys import Keys
from common.queue.scene_queue import SceneQueue
from common.task import Sampling
from common.trajectory import Usage
from workers.journal import Journal
from workers.policies.base import Turn
from workers.policies.journaled import Journaled
from workers.policies.model import ModelPolicy
from workers.tools import Tool, Toolbox, parameters

UNIT = "r1-s0"
KEY = Keys("code").journal("t", UNIT)
TTL = 60.0
CHAT = [{"role": "system", "content": "s"}, {"role": "user", "content": "Print 1."}]


class Model:
    """Plays replies and counts how often it was asked."""

    def __init__(
        self, *replies: ModelReply | Exception, provider: str = "test", model: str = "m",
        source: Source = "api", **known: Any,
    ) -> None:  # fmt: skip
        self.provider, self.model, self.source = provider, model, source
        self.capabilities = Capabilities(**{"tool_mode": "native", **known})
        self.asked = 0
        self._replies = replies

    async def complete(self, *_: Any, **__: Any) -> ModelReply:
        self.asked += 1
        said = self._replies[(self.asked - 1) % len(self._replies)]
        if isinstance(said, Exception):
            raise said
        return said

    async def check(self) -> str:
        return "ok"

    async def close(self) -> None:
        pass


def reply(tool: str = "run", /, **more: Any) -> ModelReply:
    arguments = more.pop("arguments", {"code": "1"} if tool == "run" else {})
    call = {
        "id": "c1",
        "type": "function",
        "function": {"name": tool, "arguments": "{}"},
        "extra_content": {"google": {"thought_signature": "sig=="}},
    }
    return ModelReply(
        **{
            "message": {"role": "assistant", "tool_calls": [call], "reasoning_content": "hm"},
            "text": "",
            "thought": "hm",
            "calls": (ModelCall(call_id="c1", tool=tool, arguments=arguments),),
            "finish_reason": "tool_calls",
            "parse": "native",
            "usage": Usage(prompt_tokens=100, completion_tokens=9, calls=1, cost_usd=0.25),
            "source": "standin",
            **more,
        }
    )


def box(*names: str) -> Toolbox:
    code = parameters(["code"], code={"type": "string"})
    tools = [Tool(name, name, code) for name in names or ("run",)]
    return Toolbox.of(tools, first=(), only=False)


def policy(server: Server, model: Model, sampling: Sampling | None = None) -> Journaled:
    """What another attempt at the same unit starts with."""
    asks = ModelPolicy(model, sampling or Sampling(), deadline=5, headers={})
    return Journaled(asks, Journal(SceneQueue(server, "code", ledger_ttl=TTL), "t", UNIT))


async def ask(agent: Journaled, chat: Any = CHAT, tools: Toolbox | None = None) -> Turn:
    tools = agent.show(tools or box())
    return await agent.act(list(chat), tools, deadline=5)
