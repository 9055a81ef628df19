"""Conformance: how a sandbox begins, keeps programs in the background, is lost, and ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from tests.helpers import eventually
from workers.sandboxes.protocol import (
    ExecResult,
    Sandbox,
    SandboxLost,
    SandboxPathError,
    SandboxProvider,
    SandboxUnsupported,
)
from workers.sandboxes.spec import Limits, NetworkPolicy, SandboxSpec

PROMISES = {
    "cpu", "disk", "file", "files", "memory", "network", "open_files", "output", "pids",
    "privileges", "processes", "ttl", "user", "wall",
}  # fmt: skip

Wreck = Callable[[Sandbox], Awaitable[None]]

SERVER = """
import http.server
class Hello(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'hello')
http.server.HTTPServer(('127.0.0.1', 8000), Hello).serve_forever()
"""
ASK = """
import time, urllib.request
for turn in range(100):
    try:
        print(urllib.request.urlopen('http://127.0.0.1:8000').read().decode()); break
    except OSError:
        time.sleep(0.05)
"""


@pytest.fixture
def background(provider: SandboxProvider) -> None:
    if "background" not in provider.capabilities:
        pytest.skip("this back-end leaves nothing running in the background")


async def begun(sandbox: Sandbox, command: str) -> asyncio.Task[ExecResult]:
    """Start a command; returns its call once the command has said that it runs."""
    said = asyncio.Event()
    call = sandbox.exec(f"echo begun; {command}", on_output=lambda *_: said.set())
    running = asyncio.create_task(call)
    await asyncio.wait_for(said.wait(), 20)
    return running


async def test_a_background_program_lives_on_and_its_output_is_in_its_log(
    background: None, sandbox: Sandbox
) -> None:
    began = time.monotonic()
    started = await sandbox.exec(
        "echo $COLOUR $PWD; echo oops >&2; while [ ! -e stop ]; do sleep 0.05; done; echo stopped",
        background=True, env={"COLOUR": "blue"}, cwd="/tmp",
    )  # fmt: skip
    assert (started.status, started.exit_code) == ("ok", None)
    assert (started.stdout, started.stderr) == ("", "")
    assert started.log is not None
    assert time.monotonic() - began < 3
    path = started.log
    await eventually(lambda: _holds(sandbox, path, "oops"), "it writes")
    assert (await sandbox.read_file(path)).decode() == "blue /tmp\noops\n"
    await sandbox.write_file("/tmp/stop", b"")
    await eventually(lambda: _holds(sandbox, path, "stopped"), "it goes on until told to stop")
    assert (await sandbox.exec(["cat", path])).stdout.endswith("stopped\n")


async def test_a_server_in_the_background_is_reached_by_later_steps(
    background: None, sandbox: Sandbox
) -> None:
    await sandbox.write_file("server.py", SERVER.encode())
    await sandbox.exec(["python3", "server.py"], background=True)
    assert (await sandbox.run_python(ASK)).stdout == "hello\n"
    # Neither a timeout nor strays that are killed touch it.
    assert (await sandbox.exec("sleep 60", timeout=0.2)).status == "timeout"
    await sandbox.exec("setsid sleep 300 & (sleep 300 &)")
    assert (await sandbox.run_python(ASK)).stdout == "hello\n"
    running = (await sandbox.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")).stdout
    assert "server.py" in running
    assert "sleep" not in running


async def test_what_a_background_program_starts_lives_on_too(
    background: None, sandbox: Sandbox
) -> None:
    await sandbox.exec("setsid sleep 300 & (sleep 301 &) ; echo $! >/tmp/x", background=True)
    running = "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"

    async def both() -> bool:
        seen = (await sandbox.exec(running)).stdout
        return "sleep 300" in seen and "sleep 301" in seen

    await eventually(both, "both children live though their parent has ended")


async def test_several_background_programs_have_a_log_each(
    background: None, sandbox: Sandbox
) -> None:
    logs = [(await sandbox.exec(f"echo {n}", background=True)).log or "" for n in range(3)]
    assert len(set(logs)) == 3
    for number, log in enumerate(logs):
        await eventually(partial(_holds, sandbox, log, f"{number}\n"), "it ran")
    # They ended, and what ended leaves no process behind.
    counted = "ls -d /proc/[0-9]* | wc -l"
    few = int((await sandbox.exec(counted)).stdout)
    await sandbox.exec("true", background=True)

    async def as_before() -> bool:
        return int((await sandbox.exec(counted)).stdout) <= few

    await eventually(as_before, "nothing is left of a program that ended")


async def test_a_background_program_that_cannot_start_says_why(
    background: None, sandbox: Sandbox
) -> None:
    for command, cwd in ((["no-such-program"], None), (["true"], "/nowhere"), ([], None)):
        result = await sandbox.exec(command, cwd=cwd, background=True)
        assert (result.status, result.exit_code) == ("error", None)
        assert result.stderr != ""
    assert (await sandbox.exec("echo on")).stdout == "on\n"


async def test_where_there_is_no_background_that_is_said(
    provider: SandboxProvider, sandbox: Sandbox
) -> None:
    if "background" in provider.capabilities:
        pytest.skip("this back-end can")
    with pytest.raises(SandboxUnsupported):
        await sandbox.exec("true", background=True)
    assert await sandbox.is_alive()


async def test_closing_ends_what_runs_in_the_background(
    background: None, provider: SandboxProvider
) -> None:
    sandbox = await provider.start(SandboxSpec())
    await sandbox.exec("trap '' TERM HUP; while true; do sleep 1; done", background=True)
    began = time.monotonic()
    await sandbox.close()
    assert time.monotonic() - began < 3


async def _holds(sandbox: Sandbox, path: str, text: str) -> bool:
    return text in (await sandbox.read_file(path)).decode()


async def test_a_cancelled_call_stops_its_program_and_the_sandbox_goes_on(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await sandbox.exec("echo $$ >pid; exec sleep 60")
    began = time.monotonic()
    result = await sandbox.exec("kill -0 $(cat pid) && echo still there; echo next")
    assert result.stdout == "next\n"
    assert time.monotonic() - began < 2


async def test_a_call_cancelled_before_its_turn_never_happens(sandbox: Sandbox) -> None:
    first = await begun(sandbox, "sleep 0.4; echo first")
    calls = (sandbox.exec("touch ran"), sandbox.write_file("ran", b""), sandbox.list_dir())
    waiting = [asyncio.ensure_future(call) for call in calls]
    await asyncio.wait(waiting, timeout=0.05)
    for call in waiting:
        call.cancel()
    assert (await first).stdout == "begun\nfirst\n"
    assert await sandbox.list_dir() == []


async def test_a_hail_of_cancelled_calls_does_no_harm(sandbox: Sandbox) -> None:
    for turn in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.002 * turn):
                await sandbox.exec("echo some output; sleep 60", on_output=lambda *_: None)
    assert (await sandbox.exec("echo mine")).stdout == "mine\n"


async def test_closing_is_quick_final_and_repeatable(provider: SandboxProvider) -> None:
    sandbox = await provider.start(SandboxSpec())
    running = await begun(sandbox, "sleep 60")
    began = time.monotonic()
    await asyncio.gather(sandbox.close(), sandbox.close())
    await sandbox.close()
    assert time.monotonic() - began < 3
    assert not await sandbox.is_alive()
    with pytest.raises(SandboxLost):
        await running
    await _is_of_no_use(sandbox)
    await sandbox.close()


async def _is_of_no_use(sandbox: Sandbox) -> None:
    uses: list[Callable[[], Awaitable[Any]]] = [
        lambda: sandbox.exec("true"),
        lambda: sandbox.run_python("pass"),
        lambda: sandbox.read_file("x"),
        lambda: sandbox.write_file("x", b""),
        lambda: sandbox.list_dir(),
        lambda: sandbox.keep_alive(60),
    ]
    for use in uses:
        with pytest.raises(SandboxLost):
            await use()


async def test_an_episode_that_fails_closes_its_sandbox(provider: SandboxProvider) -> None:
    with pytest.raises(ZeroDivisionError):
        async with await provider.start(SandboxSpec()) as sandbox:
            raise ZeroDivisionError
    assert not await sandbox.is_alive()


async def test_a_cancelled_close_still_closes(provider: SandboxProvider) -> None:
    sandbox = await provider.start(SandboxSpec())
    closing = asyncio.create_task(sandbox.close())
    await asyncio.wait([closing], timeout=0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not await sandbox.is_alive()
    await sandbox.close()


async def test_a_sandbox_dies_of_old_age(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(ttl=1))) as sandbox:
        with pytest.raises(SandboxLost, match="ttl"):
            await sandbox.exec("sleep 60")
        assert not await sandbox.is_alive()
        await _is_of_no_use(sandbox)


async def test_a_life_can_be_made_longer(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(ttl=1))) as sandbox:
        await sandbox.keep_alive(60)
        assert (await sandbox.exec("sleep 1.3; echo alive")).stdout == "alive\n"


async def test_a_life_can_be_made_shorter(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(ttl=600))) as sandbox:
        await sandbox.keep_alive(0.5)
        with pytest.raises(SandboxLost, match="ttl"):
            await sandbox.exec("sleep 60")
        assert not await sandbox.is_alive()


async def test_a_sandbox_that_is_killed_is_lost_and_says_so(
    provider: SandboxProvider, wreck: Wreck
) -> None:
    sandbox = await provider.start(SandboxSpec())
    running = await begun(sandbox, "sleep 60")
    await wreck(sandbox)
    began = time.monotonic()
    with pytest.raises(SandboxLost, match=sandbox.id):
        await running
    assert time.monotonic() - began < 10
    assert not await sandbox.is_alive()
    await _is_of_no_use(sandbox)
    await sandbox.close()


async def test_labels_can_be_changed_at_any_time(provider: SandboxProvider) -> None:
    spec = SandboxSpec(labels={"worker": "w1"})
    async with await provider.start(spec) as sandbox:
        await sandbox.label({"worker": "w1", "task": "好", "attempt": "a\n\"'\\"})
        await sandbox.label({})
        assert await sandbox.is_alive()


async def test_every_promise_is_named(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(ttl=77))) as sandbox:
        assert set(sandbox.enforced) >= PROMISES
        assert "77" in str(sandbox.enforced["ttl"])
        await sandbox.keep_alive(99)
        assert "99" in str(sandbox.enforced["ttl"])
        json.dumps(sandbox.enforced)
        assert sandbox.backend == provider.backend
    report = await provider.probe()
    assert report.backend == provider.backend
    assert set(report.enforced) >= PROMISES
    assert report.versions
    assert report.broken == ()


async def test_a_spec_that_cannot_be_had_is_refused(provider: SandboxProvider) -> None:
    wishes = {
        "images": SandboxSpec(image="example.org/some:1"),
        "packages": SandboxSpec(packages=("numpy",)),
        "allowlist": SandboxSpec(network=NetworkPolicy(mode="allowlist", hosts=("example.org",))),
    }
    for capability, spec in wishes.items():
        if capability not in provider.capabilities:
            with pytest.raises(SandboxUnsupported, match=provider.backend):
                await provider.start(spec)


async def test_a_file_that_cannot_be_spoils_the_start(provider: SandboxProvider) -> None:
    for path in ("", "dir/", "nul\0", "a/../..", "x" * 300, "x" * (20 << 20)):
        with pytest.raises(SandboxUnsupported, match="file"):
            await provider.start(SandboxSpec(files={"fine": b"x", path: b"x"}))


async def test_files_too_big_for_the_disk_spoil_the_start(provider: SandboxProvider) -> None:
    limits = Limits(disk_mb=1, file_mb=1)
    files = {f"f{n}": bytes(600 << 10) for n in range(3)}
    with pytest.raises(SandboxUnsupported, match=r"f1.*No space"):
        await provider.start(SandboxSpec(limits=limits, files=files))
    with pytest.raises(SandboxUnsupported, match=r"big.*larger"):
        await provider.start(SandboxSpec(limits=limits, files={"big": bytes((1 << 20) + 1)}))


async def test_loopback_is_there_whatever_the_network(provider: SandboxProvider) -> None:
    for mode in ("none", "loopback"):
        spec = SandboxSpec(network=NetworkPolicy.model_validate({"mode": mode}))
        async with await provider.start(spec) as sandbox:
            result = await sandbox.run_python(
                "import socket\n"
                "with socket.create_server(('127.0.0.1', 0)) as own:\n"
                "    socket.create_connection(own.getsockname()).close(); print('connected')\n"
                "try: socket.create_connection(('192.0.2.1', 80), 2); print('outside')\n"
                "except OSError: print('nothing outside')"
            )
            assert result.stdout == "connected\nnothing outside\n"


async def test_a_cancelled_start_leaves_nothing(provider: SandboxProvider) -> None:
    """The fixture of the provider looks for what is left."""
    async with await provider.start(SandboxSpec()):
        pass  # so that everything about the host is known
    for delay in (0, 0.004, 0.01, 0.02, 0.03, 0.05):
        starting = asyncio.create_task(provider.start(SandboxSpec(files={"x": b"x" * 100_000})))
        await asyncio.wait([starting], timeout=delay)
        starting.cancel()
        try:
            sandbox = await starting
        except asyncio.CancelledError:
            continue
        await sandbox.close()


async def test_a_provider_that_closes_ends_all_its_sandboxes(provider: SandboxProvider) -> None:
    sandboxes = await asyncio.gather(*(provider.start(SandboxSpec()) for _ in range(4)))
    running = [await begun(sandbox, "sleep 60") for sandbox in sandboxes]
    began = time.monotonic()
    await provider.close()
    assert time.monotonic() - began < 5
    for call in running:
        with pytest.raises(SandboxLost):
            await call
    assert not any([await sandbox.is_alive() for sandbox in sandboxes])
    await provider.close()
    with pytest.raises((SandboxLost, SandboxPathError)):
        await sandboxes[0].read_file("x")


async def test_the_reaper_leaves_the_living_alone(
    provider: SandboxProvider, sandbox: Sandbox
) -> None:
    await sandbox.write_file("mine", b"mine")
    assert await provider.reap() == 0
    assert await sandbox.read_file("mine") == b"mine"
