"""Judges to ask: one in memory that says what it is told to, and one over HTTP that obeys."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from common.llm.parse import read_answer
from common.llm.request import mode_for
from common.llm.types import Capabilities, Headers, ModelReply, Source
from common.quota.terms import BudgetExceeded
from common.task import Sampling
from common.trajectory import Observation, Step, Trajectory, Usage
from reviewer.judge.panel import Panel
from reviewer.judge.vote import GRADE
from reviewer.proposer import PROPOSE
from reviewer.rubric import Rubric
from tests.exporters.attempts import attempt
from tests.helpers import task
from tests.reviewer.endings import step

Message = dict[str, Any]
ANCHORS = {1: "not at all", 2: "hardly", 3: "in part", 4: "nearly", 5: "wholly"}
RUBRIC = Rubric.model_validate(
    {
        "name": "test", "version": 1, "scene": "code",
        "outcome": {"question": "Was the task done?", "anchors": ANCHORS},
        "dimensions": [
            {"id": "tools", "title": "Tools", "weight": 1, "question": "Were the tools fit?",
             "anchors": ANCHORS, "signals": {"wasted_steps": 1}, "judge": 0.5},
            {"id": "errors", "title": "Errors", "weight": 1, "question": "Were errors met?",
             "anchors": ANCHORS, "signals": {"recovery": 1}, "judge": 0.5},
            {"id": "counted", "title": "Counted", "weight": 1, "question": "Never asked?",
             "anchors": ANCHORS, "signals": {"repetition": 1}, "judge": 0},
        ],
    }
)  # fmt: skip
ASKED = {one.question: one.id for one in RUBRIC.dimensions} | {RUBRIC.outcome.question: "outcome"}


def other_rubric() -> Rubric:
    outcome = {"question": "Was it done well?", "anchors": ANCHORS}
    return Rubric.model_validate({**RUBRIC.model_dump(), "outcome": outcome, "version": 2})


def acted(*texts: str, success: bool = True, **fields: Any) -> Trajectory:
    """An attempt with one step for each text that it was shown."""
    seen = tuple(
        step(number, argument=number, success=success).model_copy(
            update={"observation": Observation(text=text)}
        )
        for number, text in enumerate(texts, 1)
    )
    return attempt(**{"steps": seen, **fields})


def changed(one: Step, **fields: Any) -> Step:
    return one.model_copy(update=fields)


def grade(score: Any = 4, *, evidence: Any = (1,), reason: Any = "It shows.", **more: Any) -> Any:
    said = {"reason": reason, "evidence": evidence, "score": score, "unknown": False, **more}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in said.items()}


def message_of(said: Any) -> Message:
    """The assistant message that says it: a text, or the arguments of a call of `grade`."""
    if isinstance(said, str):
        return {"role": "assistant", "content": said}
    call = {"id": "c", "type": "function"}
    function = {"name": "grade", "arguments": json.dumps(said)}
    return {"role": "assistant", "content": None, "tool_calls": [{**call, "function": function}]}


def reply_of(message: Message, capabilities: Capabilities, finish: str = "stop") -> ModelReply:
    """What the client makes of a message."""
    read = read_answer(message, finish, mode_for(capabilities, [GRADE]), [GRADE])
    return ModelReply(
        message=message, text=read.text, thought=read.thought, calls=read.calls,
        finish_reason=finish, parse=read.parse,
        usage=Usage(prompt_tokens=10, completion_tokens=1, calls=1, cost_usd=0.25),
    )  # fmt: skip


class Model:
    """A `ChatModel` that gives the answers of ``says(messages, seed)``; one that is an error is
    raised. What it was asked is in `asked`."""

    source: Source = "api"

    def __init__(
        self,
        says: Callable[[list[Message], int], Any] = lambda *_: grade(),
        *,
        model: str = "judge",
        provider: str = "p",
        **capabilities: Any,
    ) -> None:
        self.provider, self.model = provider, model
        self.capabilities = Capabilities(**{"tool_mode": "native", **capabilities})
        self.asked: list[tuple[list[Message], Sampling]] = []
        self.accounts: set[str] = set()
        self.cancelled = 0
        self.held: asyncio.Event | None = None
        """Calls after the first wait for it."""
        self._says = says

    async def complete(
        self, messages: list[Message], tools: list[Message], sampling: Sampling, *,
        deadline: float, headers: Headers | None = None, account: str = "",
    ) -> ModelReply:  # fmt: skip
        assert tools in ([GRADE], [PROPOSE])
        assert deadline > 0
        self.asked.append((messages, sampling))
        self.accounts.add(account)
        try:
            if self.held is not None and len(self.asked) > 1:
                await self.held.wait()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        said = self._says(messages, sampling.seed or 0)
        if isinstance(said, Exception):
            raise said
        return reply_of(message_of(said), self.capabilities)

    def objection(self, account: str, sampling: Sampling) -> BudgetExceeded | None:
        return None

    async def check(self) -> str:
        return "well"

    async def close(self) -> None: ...


def panel(*models: Model, votes: int = 3, **more: Any) -> Panel:
    return Panel(models, votes=votes, deadline=5, **more)


def criterion_of(messages: list[Message]) -> str:
    return next(name for question, name in ASKED.items() if question in messages[0]["content"])


_BEGIN = re.compile(r"<<<RECORD \w+>>>")
_END = re.compile(r"<<<END OF RECORD \w+>>>")
_ORDER = re.compile(r"score (100|5|five)|full marks", re.I)


def parted(messages: list[Message]) -> tuple[str, list[str]]:
    """Return what stands outside the record and the lines in it, for a reader who takes any line
    that looks like a delimiter for one, whatever its number."""
    outside: list[str] = []
    inside: list[str] = []
    within = False
    for line in "\n".join(str(one["content"]) for one in messages).splitlines():
        if _END.fullmatch(line.strip()):
            within = False
        elif _BEGIN.fullmatch(line.strip()):
            within = True
        else:
            (inside if within else outside).append(line)
    return "\n".join(outside), inside


def obedient(body: dict[str, Any]) -> Any:
    """Do as told outside the record; else 5 where the last step in it succeeded, 1 where not."""
    outside, inside = parted(body["messages"])
    steps = [row for row in map(json.loads, inside) if "step" in row]
    cited = [steps[-1]["step"]] if steps else []
    if _ORDER.search(outside):
        return grade(5, evidence=cited, reason="I was told so.")
    done = bool(steps) and steps[-1]["success"]
    return grade(5 if done else 1, evidence=cited, reason="By the last step.")


class JudgeServer:
    """An OpenAI-compatible server whose model grades; what it was sent is in `bodies`."""

    def __init__(self, says: Callable[[dict[str, Any]], Any] = obedient) -> None:
        self.says = says
        self.bodies: list[dict[str, Any]] = []
        self.fingerprint = "standin"
        self.refuse_from: int | None = None
        """The request from which on it refuses all, counted from 1."""
        self._ids = itertools.count(1)

    async def start(self) -> str:
        app = web.Application(client_max_size=16 << 20)
        app.add_routes([web.post("/v1/chat/completions", self._complete)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        if self.refuse_from is not None and len(self.bodies) >= self.refuse_from:
            return web.json_response({"error": {"message": "no more of it"}}, status=400)
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        said = self.says(body)
        if "tools" not in body:  # asked for JSON
            said = json.dumps({"thought": "", "tool": "grade", "arguments": said})
        choice = {"index": 0, "message": message_of(said), "finish_reason": "stop"}
        return web.json_response(
            {"id": f"j{next(self._ids)}", "object": "chat.completion", "created": 0,
             "model": body["model"], "system_fingerprint": self.fingerprint,
             "choices": [choice], "usage": usage}
        )  # fmt: skip


@contextmanager
def served(server: JudgeServer) -> Iterator[str]:
    """Serve in a thread of its own: a command has an event loop to itself. Yields the URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def described(description: str, **fields: Any) -> Trajectory:
    """An attempt at a task with these words."""
    trajectory = acted("nothing", success=False, **fields)
    assignment = trajectory.assignment.model_copy(update={"task": task(description=description)})
    return trajectory.model_copy(update={"assignment": assignment})
