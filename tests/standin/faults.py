"""The ways a provider goes wrong, each as a response: a name, and a number after a colon.

429:0.2   too many requests, with Retry-After        500, 503:0.1, 401, 402, 403, 404, 400, 422
stall     no answer until the client gives up        drip:0.05  a byte, then a pause, and so on
cut       the connection breaks in mid-answer        broken_json, html, no_choices, no_finish
bad_arguments, wrong_tool, length, nonsense          answers that are no usable action
blank_lines   DeepSeek's keep-alive before an answer that is good
no_usage      a good answer without a count of tokens
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

Answer = dict[str, Any]
Respond = Callable[[web.Request, Answer, float], Awaitable[web.StreamResponse]]

_SAID = {
    400: "This model's maximum context length is 8192 tokens",
    401: "Incorrect API key provided: {key}",
    402: "Insufficient Balance",
    403: "Not allowed with key {key}",
    404: "The model does not exist",
    422: "messages: field required",
    429: "Too many requests",
    500: "The server had an error",
    503: "Overloaded",
}


def plan(fault: str) -> tuple[Respond, float]:
    """Return the response of a fault and its number. Raises `ValueError` for an unknown one."""
    name, _, number = fault.partition(":")
    if name.isdigit() and int(name) in _SAID:
        return _status(int(name)), float(number or -1)
    if name not in _NAMED:
        raise ValueError(f"unknown fault {fault!r}; known: {sorted(_NAMED)} and {sorted(_SAID)}")
    return _NAMED[name], float(number or 0)


def _status(status: int) -> Respond:
    async def respond(request: web.Request, _: Answer, after: float) -> web.Response:
        # Real servers repeat the key in such errors; ours must never pass it on.
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        error = {"error": {"message": _SAID[status].format(key=key), "type": "standin"}}
        headers = {"Retry-After": f"{after:g}"} if after >= 0 else {}
        if status == 429:
            headers["x-ratelimit-remaining-requests"] = "0"
        return web.json_response(error, status=status, headers=headers)

    return respond


async def _stall(request: web.Request, _: Answer, seconds: float) -> web.Response:
    await asyncio.sleep(seconds or 3600)
    return web.json_response({"error": "too late"}, status=500)


async def _drip(request: web.Request, answer: Answer, pause: float) -> web.StreamResponse:
    response = await _start(request)
    for byte in json.dumps(answer).encode():
        await response.write(bytes([byte]))
        await asyncio.sleep(pause or 0.05)
    return response


async def _cut(request: web.Request, answer: Answer, _: float) -> web.StreamResponse:
    response = await _start(request)
    await response.write(json.dumps(answer).encode()[:40])
    if request.transport is not None:
        request.transport.abort()
    return response


async def _blank_lines(request: web.Request, answer: Answer, _: float) -> web.StreamResponse:
    response = await _start(request)
    await response.write(b"\n" * 20 + json.dumps(answer).encode())
    return response


async def _broken_json(request: web.Request, answer: Answer, _: float) -> web.Response:
    text = json.dumps(answer)
    return web.Response(text=text[: len(text) // 2], content_type="application/json")


async def _html(request: web.Request, _: Answer, __: float) -> web.Response:
    return web.Response(text="<html>Bad gateway, sort of</html>", content_type="text/html")


async def _no_choices(request: web.Request, _: Answer, __: float) -> web.Response:
    return web.json_response({"error": {"message": "upstream failed", "code": 502}})


def _changed(change: Callable[[dict[str, Any]], None]) -> Respond:
    async def respond(request: web.Request, answer: Answer, _: float) -> web.Response:
        change(answer["choices"][0])
        return web.json_response(answer)

    return respond


def _no_finish(choice: dict[str, Any]) -> None:
    choice["finish_reason"] = None


def _bad_arguments(choice: dict[str, Any]) -> None:
    for call in choice["message"].get("tool_calls", ()):
        call["function"]["arguments"] = '{"code": print(1)}'


def _wrong_tool(choice: dict[str, Any]) -> None:
    for call in choice["message"].get("tool_calls", ()):
        call["function"]["name"] = "no_such_tool"


def _length(choice: dict[str, Any]) -> None:
    choice["finish_reason"] = "length"
    for call in choice["message"].get("tool_calls", ()):
        call["function"]["arguments"] = '{"code": "import os\\nos.remo'


def _nonsense(choice: dict[str, Any]) -> None:
    choice["finish_reason"] = "stop"
    choice["message"] = {"role": "assistant", "content": "As a stand-in I feel blue today."}


async def _no_usage(request: web.Request, answer: Answer, _: float) -> web.Response:
    return web.json_response({name: value for name, value in answer.items() if name != "usage"})


async def _start(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    return response


_NAMED: dict[str, Respond] = {
    "stall": _stall,
    "drip": _drip,
    "cut": _cut,
    "blank_lines": _blank_lines,
    "broken_json": _broken_json,
    "html": _html,
    "no_choices": _no_choices,
    "no_finish": _changed(_no_finish),
    "bad_arguments": _changed(_bad_arguments),
    "wrong_tool": _changed(_wrong_tool),
    "length": _changed(_length),
    "nonsense": _changed(_nonsense),
    "no_usage": _no_usage,
}
