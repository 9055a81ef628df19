"""How close the model client comes to the ideal: `python -m benchmarks llm`.

64 calls in flight against a server that answers each after 200 ms: at best 320 calls a second. The
request is that of a normal agent turn, 41 messages and 12 tools, about 41 KB. The server runs in a
process of its own; raw aiohttp, without parsing or retries, shows what the machine can do.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import resource
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

from benchmarks.rows import Row, Section, at_least
from common.llm.client import OpenAIChat
from common.llm.providers import ProviderConfig, registry
from common.task import Sampling

LATENCY = 0.2  # seconds
IN_FLIGHT = 64
GOAL = 0.9  # of the ideal
SECONDS, ROUNDS = 3.0, 2  # the best round counts


def main() -> list[Section]:
    chat, tools = request()
    size = len(json.dumps({"messages": chat, "tools": tools}))
    url, server = start_server()
    try:
        rows = uvloop.run(measure(url, chat, tools, SECONDS, ROUNDS))
    finally:
        server.terminate()
        server.join()
    ideal = IN_FLIGHT / LATENCY
    section = Section(
        f"Model client, {IN_FLIGHT} calls in flight, {LATENCY * 1000:.0f} ms, {size / 1000:.0f} KB"
    )
    section.headings = ("client", "calls/s", "of the ideal", "CPU ms/call")
    section.lines = [("ideal", f"{ideal:.0f}", "100 %", "")]
    for name, rate, cpu in rows:
        section.lines.append((name, f"{rate:.0f}", f"{rate / ideal:.0%}", f"{cpu * 1000:.2f}"))
    raw, ours = (rate for _, rate, _ in rows)
    section.rows = [
        Row("model client, of the ideal", ours / ideal * 100, "%", at_least(GOAL * 100),
            f"{ours / raw:.1%} of raw aiohttp"),
        Row("  CPU", rows[1][2] * 1e3, "ms a call"),
    ]  # fmt: skip
    return [section]


async def measure(
    url: str, chat: list[dict[str, Any]], tools: list[dict[str, Any]], seconds: float, rounds: int
) -> list[tuple[str, float, float]]:
    """Return name, best calls per second and CPU seconds per call of each client."""
    body = {"model": "m", "messages": chat, "tools": tools}
    config = ProviderConfig(
        name="custom", base_url=url, api_key=None, model="m", record=registry()["custom"],
        source="api", concurrency=IN_FLIGHT, rate_limit_budget=0.0,
    )  # fmt: skip
    model = OpenAIChat(config)
    async with aiohttp.ClientSession() as session:

        async def raw() -> None:
            async with session.post(f"{url}/chat/completions", json=body) as response:
                await response.json()

        async def ours() -> None:
            await model.complete(chat, tools, Sampling(), deadline=30)

        rows = []
        for name, call in (("raw aiohttp", raw), ("common.llm.client", ours)):
            best = max([await drive(call, seconds) for _ in range(rounds)])
            rows.append((name, *best))
    await model.close()
    return rows


async def drive(call: Callable[[], Awaitable[None]], seconds: float) -> tuple[float, float]:
    """Keep `IN_FLIGHT` calls going; return calls per second and CPU seconds per call."""
    await asyncio.gather(*(call() for _ in range(IN_FLIGHT)))  # open the connections
    done, started = 0, time.perf_counter()
    cpu = resource.getrusage(resource.RUSAGE_SELF)

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() - started < seconds:
            await call()
            done += 1

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    spent = time.perf_counter() - started
    now = resource.getrusage(resource.RUSAGE_SELF)
    used = now.ru_utime + now.ru_stime - cpu.ru_utime - cpu.ru_stime
    return done / spent, used / done


def request() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return a chat of 41 messages in its twentieth turn, and 12 tools."""
    chat: list[dict[str, Any]] = [{"role": "system", "content": "You are an agent. " * 40}]
    for turn in range(20):
        call = {
            "id": f"call_{turn}",
            "type": "function",
            "function": {"name": "run_python", "arguments": json.dumps({"code": "x = 1\n" * 70})},
        }
        chat.append({"role": "assistant", "content": "I look at it. " * 10, "tool_calls": [call]})
        chat.append({"role": "tool", "tool_call_id": call["id"], "content": "1234567 " * 90})
    tools = [
        {
            "type": "function",
            "function": {
                "name": f"tool_{n}",
                "description": "Does one thing, and says what came of it. " * 4,
                "parameters": {
                    "type": "object",
                    "properties": {f"argument_{k}": {"type": "string"} for k in range(6)},
                    "required": ["argument_0"],
                },
            },
        }
        for n in range(12)
    ]
    return chat, tools


def start_server() -> tuple[str, multiprocessing.process.BaseProcess]:
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    if not ours.poll(30):
        raise RuntimeError("the stub server did not start")
    return f"http://127.0.0.1:{ours.recv()}/v1", process


def _serve(started: Connection) -> None:
    answer = {
        "id": "1", "object": "chat.completion", "created": 0, "model": "m",
        "choices": [{
            "index": 0, "finish_reason": "tool_calls",
            "message": {"role": "assistant", "content": "I run it.", "tool_calls": [{
                "id": "call_1", "type": "function",
                "function": {"name": "tool_1", "arguments": '{"argument_0": "x"}'},
            }]},
        }],
        "usage": {"prompt_tokens": 9000, "completion_tokens": 40, "total_tokens": 9040},
    }  # fmt: skip
    payload = json.dumps(answer).encode()

    async def complete(request: web.Request) -> web.Response:
        await request.read()
        await asyncio.sleep(LATENCY)
        return web.Response(body=payload, content_type="application/json")

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", complete)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        started.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    uvloop.run(serve())
