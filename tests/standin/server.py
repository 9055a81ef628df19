"""The stand-in's HTTP server: looks up the turn, lets a planned fault happen, keeps a journal."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web

from tests.standin.faults import plan
from tests.standin.script import Script, Turn, task_of

MODEL = "standin-1"


@dataclass
class Entry:
    """One request as the stand-in saw it. Times are seconds of the monotonic clock."""

    task: str
    attempt: str | None
    number: int
    """Of this request within its task, from 1."""
    turn: int
    arrived: float
    fault: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    left: float | None = None
    """None while it is being answered, and for a client that went away."""


class Standin:
    """An OpenAI-compatible server: `async with Standin(script) as standin: … standin.url`."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        keep_bodies: bool = True,
    ) -> None:
        self._keep_bodies = keep_bodies
        self.script = script or Script()
        self.journal: list[Entry] = []
        self.most_at_once = 0
        self._at_once = 0
        self._requests: Counter[str] = Counter()
        self._host, self._port = host, port
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}/v1"

    async def start(self) -> None:
        app = web.Application(client_max_size=64 << 20)
        app.add_routes(
            [
                web.post("/v1/chat/completions", self._complete),
                web.get("/v1/models", self._models),
                web.get("/health", self._health),
                web.get("/standin/journal", self._show_journal),
            ]
        )
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port, backlog=1024)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def __aenter__(self) -> Standin:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.stop()

    def of(self, task: str) -> list[Entry]:
        """Return the journal of one task."""
        return [entry for entry in self.journal if entry.task == task]

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        entry = self._note(request, body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return await self._answer(request, entry)
        finally:
            self._at_once -= 1
            entry.left = time.monotonic()
            if not self._keep_bodies:
                entry.body = {}

    def _note(self, request: web.Request, body: dict[str, Any]) -> Entry:
        messages = body.get("messages", [])
        task = task_of(request.headers, messages, body.get("tools") or [])
        self._requests[task] += 1
        entry = Entry(
            task=task,
            attempt=request.headers.get("x-fleet-attempt"),
            number=self._requests[task],
            turn=sum(message.get("role") == "assistant" for message in messages),
            arrived=time.monotonic(),
            body=body,
            headers={name.lower(): value for name, value in request.headers.items()},
        )
        self.journal.append(entry)
        return entry

    async def _answer(self, request: web.Request, entry: Entry) -> web.StreamResponse:
        known = self.script[entry.task]
        if known is None:
            return _refuse(f"the stand-in has no script for task {entry.task!r}")
        turns = known.turns_for(entry.body)
        if lost := _lost_signature(entry.body, turns):
            return _refuse(f"the thought signature of {lost} was not echoed")
        entry.fault = known.fault(entry.number)
        if entry.turn < len(turns):
            turn = turns[entry.turn]
        elif entry.fault is not None:
            turn = Turn(text="")
        else:
            return _refuse(f"task {entry.task!r} has no turn {entry.turn + 1} in its script")
        await asyncio.sleep(turn.delay)
        answer = completion(turn, entry)
        if entry.fault is not None:
            respond, number = plan(entry.fault)
            return await respond(request, answer, number)
        return web.json_response(answer)

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _show_journal(self, _: web.Request) -> web.Response:
        entries = [
            {
                name: value
                for name, value in asdict(entry).items()
                if name not in ("body", "headers")
            }
            for entry in self.journal
        ]
        return web.json_response({"most_at_once": self.most_at_once, "entries": entries})


def completion(turn: Turn, entry: Entry) -> dict[str, Any]:
    """Return the chat completion of a turn."""
    message: dict[str, Any] = {"role": "assistant", "content": turn.text, "refusal": None}
    if turn.reasoning is not None:
        message["reasoning_content"] = turn.reasoning
    single = {"tool": turn.tool, "arguments": turn.arguments}
    calls = turn.calls or ((single,) if turn.tool is not None else ())
    if calls:
        message["tool_calls"] = [_call(call, turn, entry, n) for n, call in enumerate(calls)]
    spoken = len(json.dumps(message)) // 4
    asked = len(json.dumps(entry.body.get("messages"))) // 4
    return {
        "id": f"standin-{entry.task}-{entry.number}",
        "object": "chat.completion",
        "created": 0,
        "model": entry.body.get("model", MODEL),
        "system_fingerprint": "standin",
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": turn.finish_reason or ("tool_calls" if calls else "stop"),
            }
        ],
        "usage": turn.usage
        or {
            "prompt_tokens": asked,
            "completion_tokens": spoken,
            "total_tokens": asked + spoken,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def _call(call: dict[str, Any], turn: Turn, entry: Entry, position: int) -> dict[str, Any]:
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {})
    made: dict[str, Any] = {
        "id": f"call_{entry.turn}_{position}",
        "type": "function",
        "function": {"name": call["tool"], "arguments": arguments},
    }
    if turn.signature is not None:
        made["extra_content"] = {"google": {"thought_signature": turn.signature}}
    return made


def _lost_signature(body: dict[str, Any], turns: tuple[Turn, ...]) -> str | None:
    """Return which earlier turn's signature a request fails to echo, as Gemini would."""
    spoken = [m for m in body.get("messages", ()) if m.get("role") == "assistant"]
    for number, (message, turn) in enumerate(zip(spoken, turns, strict=False), start=1):
        if turn.signature is None:
            continue
        calls: list[dict[str, Any]] = message.get("tool_calls") or [{}]
        for call in calls:
            google = call.get("extra_content", {}).get("google", {})
            if google.get("thought_signature") != turn.signature:
                return f"turn {number}"
    return None


def _refuse(why: str) -> web.Response:
    return web.json_response({"error": {"message": why, "type": "standin"}}, status=400)
