"""Conformance: what programs write is kept, in order, up to the cap, and told while it comes."""

from __future__ import annotations

import time

import pytest

from workers.sandboxes.protocol import ExecResult, Sandbox, SandboxProvider
from workers.sandboxes.spec import Limits, SandboxSpec

MIB = 1 << 20


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_endless_output_is_cut_and_its_program_stopped(
    provider: SandboxProvider, stream: str
) -> None:
    spec = SandboxSpec(limits=Limits(output_bytes=10_000))
    async with await provider.start(spec) as sandbox:
        result = await sandbox.exec("yes >&2" if stream == "stderr" else "yes", timeout=20)
        assert result.status == "output_limit"
        cut, other = (
            (result.stderr, result.stdout) if stream == "stderr" else (result.stdout, result.stderr)
        )
        assert len(cut) == 10_000
        assert other == ""
        assert result.stdout_truncated == (stream == "stdout")
        assert result.stderr_truncated == (stream == "stderr")
        # All of the cap can be used.
        full = await sandbox.exec("head -c 10000 /dev/zero")
        assert (full.status, len(full.stdout)) == ("ok", 10_000)
        assert not full.stdout_truncated
        over = await sandbox.exec("head -c 10001 /dev/zero")
        assert (over.status, len(over.stdout)) == ("output_limit", 10_000)


async def test_both_streams_can_be_full_at_once(sandbox: Sandbox) -> None:
    """Neither waits for the other to be read, up to the cap of each."""
    result = await sandbox.run_python(
        "import sys\n"
        f"for n in range({MIB} // 1024):\n"
        "    sys.stdout.write('o' * 1024); sys.stderr.write('e' * 1024)"
    )
    assert result.status == "ok"
    assert result.stdout == "o" * MIB
    assert result.stderr == "e" * MIB
    assert not result.stdout_truncated
    assert not result.stderr_truncated


async def test_each_stream_keeps_its_order(sandbox: Sandbox) -> None:
    result = await sandbox.exec("for n in 1 2 3 4 5; do echo o$n; echo e$n >&2; done; (echo child)")
    assert result.stdout == "o1\no2\no3\no4\no5\nchild\n"
    assert result.stderr == "e1\ne2\ne3\ne4\ne5\n"


async def test_a_character_cut_in_two_is_replaced(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(output_bytes=1024))) as sandbox:
        result = await sandbox.run_python("print('好' * 1000)")
        assert result.status == "output_limit"
        assert result.stdout == "好" * 341 + "�"


async def test_terminal_escapes_are_data(sandbox: Sandbox) -> None:
    escapes = "\x1b[2J\x1b]0;owned\x07\r\x08\x9b31m\x00"
    result = await sandbox.run_python(f"print({escapes!r}, end='')")
    assert result.stdout == escapes


@pytest.mark.parametrize("how", ["shell", "python"])
async def test_output_is_told_while_it_comes_and_adds_up_to_the_result(
    sandbox: Sandbox, how: str
) -> None:
    heard: list[tuple[float, str, bytes]] = []

    def hear(stream: str, piece: bytes) -> None:
        heard.append((time.monotonic(), stream, piece))

    if how == "shell":
        result = await sandbox.exec(
            "echo first; echo oops >&2; sleep 0.5; head -c 200000 /dev/zero; echo last",
            on_output=hear,
        )
    else:
        result = await sandbox.run_python(
            "import sys, time\n"
            "print('first', flush=True); print('oops', file=sys.stderr)\n"
            "time.sleep(0.5); print('\\0' * 200000 + 'last')",
            on_output=hear,
        )
    ended = time.monotonic()
    assert result.status == "ok"
    assert _of(heard, "stdout").decode() == result.stdout
    assert _of(heard, "stderr").decode() == result.stderr == "oops\n"
    assert result.stdout == "first\n" + "\0" * 200_000 + "last\n"
    at, _, piece = next(entry for entry in heard if entry[1] == "stdout")
    assert piece == b"first\n"
    assert at < ended - 0.3
    assert all(piece for _, _, piece in heard)


async def test_output_told_stops_at_the_cap_and_at_the_timeout(provider: SandboxProvider) -> None:
    heard: list[tuple[float, str, bytes]] = []

    def hear(stream: str, piece: bytes) -> None:
        heard.append((0, stream, piece))

    async with await provider.start(SandboxSpec(limits=Limits(output_bytes=5000))) as sandbox:
        result = await sandbox.exec("yes", on_output=hear)
        assert result.status == "output_limit"
        assert _of(heard, "stdout").decode() == result.stdout
        assert len(result.stdout) == 5000
        heard.clear()
        result = await sandbox.exec("echo x; sleep 60", timeout=0.3, on_output=hear)
        assert (result.status, result.stdout, _of(heard, "stdout")) == ("timeout", "x\n", b"x\n")
        heard.clear()
        assert (await sandbox.exec("echo quiet")).stdout == "quiet\n"
        assert heard == [], "only the call that asked for it hears"


def _of(heard: list[tuple[float, str, bytes]], stream: str) -> bytes:
    return b"".join(piece for _, which, piece in heard if which == stream)


async def test_the_smallest_limits_still_run_a_program(provider: SandboxProvider) -> None:
    smallest = Limits(
        memory_mb=16, pids=4, disk_mb=1, inodes=16, file_mb=1, open_files=32,
        output_bytes=1024, read_bytes=1024,
    )  # fmt: skip
    async with await provider.start(SandboxSpec(limits=smallest)) as sandbox:
        results: list[ExecResult] = [
            await sandbox.exec("echo out | cat"),
            await sandbox.run_python("print('out')"),
        ]
        assert [(r.status, r.stdout) for r in results] == [("ok", "out\n")] * 2
        await sandbox.write_file("a/b", b"x" * 1024)
        assert await sandbox.read_file("a/b") == b"x" * 1024
