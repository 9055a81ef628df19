"""What may go wrong between a step on an OpenSandbox server and its reply."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from tests.sandboxes.opensandbox_fixtures import provider as provider
from tests.sandboxes.opensandbox_fixtures import standin as standin
from tests.sandboxes.opensandbox_standin import (
    Standin,
    events,
    hanging,
    refusing,
)
from workers.sandboxes.opensandbox import steps
from workers.sandboxes.protocol import Sandbox, SandboxLost, SandboxProvider
from workers.sandboxes.spec import SandboxSpec

COMMAND = "POST execd/command"
INIT = {"type": "init", "text": "1"}


@pytest.fixture
async def sandbox(provider: SandboxProvider) -> AsyncIterator[Sandbox]:
    async with await provider.start(SandboxSpec()) as sandbox:
        yield sandbox


def said(*frames: dict[str, Any], raw: bytes = b"") -> dict[str, str]:
    """Return the event of a line that carries these frames."""
    data = b"".join(steps.frame(one, *([raw] if raw else [])) for one in frames)
    return {"type": "stdout", "text": base64.b64encode(data).decode("ascii")}


def failed(code: str) -> dict[str, Any]:
    error = {"ename": "CommandExecError", "evalue": code, "traceback": []}
    return {"type": "error", "error": error}


def complaint(text: str) -> dict[str, str]:
    return {"type": "stderr", "text": text}


async def _lose(request: web.Request) -> web.StreamResponse | None:
    assert request.transport is not None
    request.transport.abort()
    return None


async def _end_lost(sandbox: Sandbox, why: str) -> None:
    began = time.monotonic()
    with pytest.raises(SandboxLost, match=why):
        await sandbox.exec("echo on", timeout=20)
    assert time.monotonic() - began < 8
    assert not await sandbox.is_alive()
    with pytest.raises(SandboxLost, match=why):
        await sandbox.read_file("x")


async def test_a_stream_that_is_cut_loses_the_sandbox_with_what_was_complained_about(
    standin: Standin, sandbox: Sandbox
) -> None:
    standin.faults[COMMAND] = [
        events(INIT, said({"id": 0}), complaint("Traceback: oops"), then=_lose)
    ]
    await _end_lost(sandbox, r"no reply: .*Traceback: oops")


async def test_what_a_program_wrote_before_the_cut_was_told(
    standin: Standin, sandbox: Sandbox
) -> None:
    piece = said({"id": 1, "stream": "stdout"}, raw=b"before")
    standin.faults[COMMAND] = [events(INIT, piece, then=_lose)]
    heard: list[bytes] = []
    with pytest.raises(SandboxLost, match="no reply after 6 bytes of output"):
        await sandbox.exec("echo on", on_output=lambda _, part: heard.append(part))
    assert heard == [b"before"]


async def test_a_command_that_ends_without_a_reply_loses_the_sandbox(
    standin: Standin, sandbox: Sandbox
) -> None:
    # execd tells of a command that was killed, or ran too long, with -1 and no error of HTTP.
    standin.faults[COMMAND] = [events(INIT, complaint("Killed"), failed("-1"))]
    await _end_lost(sandbox, r"the command ended.*Killed")


async def test_a_stream_that_falls_silent_loses_the_sandbox_long_before_the_timeout(
    standin: Standin, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SILENCE", 0.4)
    standin.faults[COMMAND] = [events(INIT, then=hanging())]
    await _end_lost(sandbox, r"nothing was heard from it for 0\.4 s")


@pytest.mark.slow
async def test_a_program_that_is_silent_for_long_is_not_taken_for_dead(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "SILENCE", 5.7)  # the agent gives a sign of life each 5 s
    assert (await sandbox.exec("sleep 6; echo on")).stdout == "on\n"


@pytest.mark.parametrize(
    "line",
    [
        {"type": "stdout", "text": "no base64!"},
        {"type": "stdout", "text": base64.b64encode(b"\xff\xff\xff\xff").decode()},
        {"type": "stdout", "text": base64.b64encode(b"\0\0\0\2[]").decode()},
        {"type": "stdout", "text": base64.b64encode(steps.frame({"id": 1})[:-1] + b",").decode()},
        said({"id": 99}),
        said({"id": 1, "status": "ok"}),
        said({"id": 1, "stream": "neither"}, raw=b"x"),
        {
            "type": "stdout",
            "text": base64.b64encode(b'\0\0\0\x17{"id":1,"raw":[99999999]}').decode(),
        },
        {"type": "stdout", "text": base64.b64encode(b'\0\0\0\x15{"id":1,"raw":[1,1,1]}').decode()},
        {"type": "stdout", "text": base64.b64encode(b'\0\0\0\x14{"id":1,"raw":[1e999]}').decode()},
    ],
    ids=["text", "huge", "list", "json", "number", "bare", "stream", "part", "parts", "endless"],
)
async def test_nonsense_instead_of_a_reply_loses_the_sandbox(
    standin: Standin, sandbox: Sandbox, line: dict[str, str]
) -> None:
    standin.faults[COMMAND] = [events(INIT, line, then=hanging())]
    await _end_lost(sandbox, "no proper reply")


@pytest.mark.parametrize("route", [COMMAND, "POST execd/files"])
@pytest.mark.parametrize("fault", ["refused", "lost"])
async def test_an_execd_that_gives_way_loses_the_sandbox(
    standin: Standin, sandbox: Sandbox, route: str, fault: str
) -> None:
    standin.always[route] = refusing(502, "X", "bad gateway") if fault == "refused" else _lose
    await _end_lost(sandbox, r"502|connect|disconnect|closed")


async def test_a_server_that_restarts_does_not_take_the_sandbox_with_it(
    standin: Standin, sandbox: Sandbox
) -> None:
    assert (await sandbox.exec("echo one")).stdout == "one\n"
    await standin.stop()
    await standin.__aenter__()
    assert (await sandbox.exec("echo two")).stdout == "two\n"


async def test_a_reply_cut_into_many_lines_is_one_reply(standin: Standin, sandbox: Sandbox) -> None:
    data = steps.frame({"id": 0}) + steps.frame({"id": 1}, b"content")
    lines = [
        {"type": "stdout", "text": base64.b64encode(data[n : n + 1]).decode()}
        for n in range(len(data))
    ]
    standin.faults[COMMAND] = [events(INIT, *lines, then=hanging())]
    assert await sandbox.read_file("x") == b"content"


async def test_nobody_waits_for_a_stream_that_execd_keeps_open(
    standin: Standin, sandbox: Sandbox
) -> None:
    began = time.monotonic()
    for _ in range(5):
        await sandbox.exec("true")
    assert time.monotonic() - began < 3, "execd keeps each stream open for a second"


async def test_a_cancelled_step_is_interrupted_on_the_server(
    standin: Standin, sandbox: Sandbox
) -> None:
    begun = asyncio.Event()
    running = asyncio.create_task(
        sandbox.exec("echo $$ >pid; echo on; sleep 60", on_output=lambda *_: begun.set())
    )
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(standin.asked("DELETE execd/command")) == 1
    assert (await sandbox.exec("kill -0 $(cat pid) 2>/dev/null || echo gone")).stdout == "gone\n"


async def test_a_step_given_up_in_vain_is_stopped_by_the_next(
    standin: Standin, sandbox: Sandbox
) -> None:
    """Whatever the server did of it: a stream closed unnoticed, an interrupt that never came."""
    standin.always["DELETE execd/command"] = refusing(500, "X", "no such session")
    unnoticed: list[asyncio.Task[Any]] = []

    async def detached(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        unnoticed.append(asyncio.create_task(_command(standin, json.loads(body)["command"])))
        return await _forever(request)

    standin.faults[COMMAND] = [detached]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await sandbox.exec("touch begun; sleep 60")
    began = time.monotonic()
    result = await sandbox.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '; ls")
    assert "sleep 60" not in result.stdout
    assert result.stdout.endswith("begun\n")
    assert time.monotonic() - began < 5
    for task in unnoticed:
        task.cancel()
    await asyncio.wait(unnoticed)


async def _forever(request: web.Request) -> web.StreamResponse:
    answer = await hanging()(request)
    assert answer is not None
    return answer


async def _command(standin: Standin, command: str) -> None:
    (box,) = standin.boxes.values()
    await standin.run_inside(box, command)


async def test_requests_of_cancelled_steps_do_not_pile_up(
    standin: Standin, sandbox: Sandbox
) -> None:
    for _ in range(3):
        standin.faults[COMMAND] = [hanging()]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await sandbox.write_file("x", b"x" * 100_000)
    await sandbox.exec("true")
    (box,) = standin.boxes.values()
    left = (await standin.run_inside(box, "ls /tmp/.fleet-*")).split()
    assert not any(name.isdigit() for name in left), left
