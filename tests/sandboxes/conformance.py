"""What every sandbox back-end does, whatever it is made of."""

from __future__ import annotations

import asyncio
import time

import pytest

from workers.sandboxes.protocol import (
    Sandbox,
    SandboxLost,
    SandboxPathError,
    SandboxProvider,
)
from workers.sandboxes.spec import Limits, SandboxSpec


async def test_a_shell_line_returns_its_output_and_exit_code(sandbox: Sandbox) -> None:
    result = await sandbox.exec("echo out; echo err >&2; exit 3")
    assert (result.status, result.exit_code) == ("error", 3)
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    assert not result.stdout_truncated
    assert result.duration < 5
    assert result.cpu_seconds is not None
    assert result.cpu_seconds < 1
    assert result.peak_memory_bytes is not None
    assert result.peak_memory_bytes > 100_000


async def test_a_program_gets_its_arguments_untouched(sandbox: Sandbox) -> None:
    result = await sandbox.exec(["printf", "%s|", "a b", "$HOME", "*", "", "好"])
    assert (result.status, result.exit_code) == ("ok", 0)
    assert result.stdout == "a b|$HOME|*||好|"


async def test_folder_environment_and_input_are_those_asked_for(sandbox: Sandbox) -> None:
    await sandbox.write_file("sub/x", b"")
    result = await sandbox.exec(
        "pwd; echo $COLOUR; cat", cwd="/work/sub", env={"COLOUR": "blue"}, stdin=b"in\xff" * 50_000
    )
    assert result.stdout == "/work/sub\nblue\n" + "in�" * 50_000


async def test_a_command_that_cannot_start_says_why(sandbox: Sandbox) -> None:
    for command, cwd, reason in (
        (["no-such-program"], None, "not found"),
        (["echo"], "/no/such/folder", "No such file"),
        (["echo", "nul\0byte"], None, "null byte"),
        (["/work"], None, "denied"),
        (["echo", "lone \ud800"], None, "surrogates"),
    ):
        result = await sandbox.exec(command, cwd=cwd)
        assert (result.status, result.exit_code) == ("error", None)
        assert reason in result.stderr
    assert (await sandbox.exec("no-such-program")).exit_code == 127


async def test_a_signal_is_told_as_one(sandbox: Sandbox) -> None:
    result = await sandbox.exec(["sh", "-c", "kill -SEGV $$"])
    assert (result.status, result.exit_code) == ("killed", 139)


@pytest.mark.parametrize("how", ["shell", "python"])
async def test_a_timeout_keeps_what_was_written(sandbox: Sandbox, how: str) -> None:
    began = time.monotonic()
    if how == "shell":
        result = await sandbox.exec("trap '' TERM INT HUP; echo before; sleep 60", timeout=0.4)
    else:
        result = await sandbox.run_python(
            "import signal, time\n"
            "for n in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
            "print('before', flush=True)\n"
            "while True: time.sleep(60)",
            timeout=0.4,
        )
    assert result.status == "timeout"
    assert result.stdout == "before\n"
    assert 0.4 <= result.duration < 1
    assert time.monotonic() - began < 2
    assert await sandbox.is_alive()


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


async def test_what_a_program_leaves_running_is_killed(sandbox: Sandbox) -> None:
    await sandbox.exec(
        "setsid sh -c 'trap \"\" TERM; sleep 300' >/dev/null 2>&1 & (sleep 301 &) ;"
        "nohup sleep 302 &"
    )
    await sandbox.run_python(
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0: time.sleep(300)\n"
        "    os._exit(0)\n"
    )
    left = await sandbox.exec("ps -eo args= 2>/dev/null || cat /proc/[0-9]*/cmdline")
    assert "sleep" not in left.stdout.replace("sleep-less", "")


async def test_files_written_are_seen_by_programs_and_back(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 1000
    await sandbox.write_file("a/b/c.bin", data)
    assert await sandbox.read_file("a/b/c.bin") == data
    assert (await sandbox.exec("wc -c <a/b/c.bin")).stdout.strip() == str(len(data))
    await sandbox.write_file("/work/run.sh", b"#!/bin/sh\necho ran\n", mode=0o755)
    assert (await sandbox.exec(["./run.sh"])).stdout == "ran\n"
    await sandbox.exec("printf made >made.txt; mkfifo pipe; ln -s nowhere link")
    assert await sandbox.read_file("made.txt") == b"made"
    listed = {entry.name: (entry.kind, entry.size) for entry in await sandbox.list_dir()}
    assert listed["made.txt"] == ("file", 4)
    assert listed["a"][0] == "dir"
    assert listed["pipe"][0] == "other"
    assert listed["link"][0] == "symlink"


async def test_a_path_that_will_not_do_is_refused(sandbox: Sandbox) -> None:
    await sandbox.exec("mkdir dir; mkfifo pipe; head -c 5000 /dev/zero >big; touch plain")
    for path in ("missing", "dir", "pipe", "/dev/zero", "nul\0"):
        with pytest.raises(SandboxPathError):
            await sandbox.read_file(path)
    with pytest.raises(SandboxPathError, match="larger"):
        await sandbox.read_file("big", max_bytes=4999)
    assert len(await sandbox.read_file("big", max_bytes=5000)) == 5000
    for path in ("dir", "/usr/x", "plain/x", "", "dir/"):
        with pytest.raises(SandboxPathError):
            await sandbox.write_file(path, b"x")
    for path in ("plain", "missing"):
        with pytest.raises(SandboxPathError):
            await sandbox.list_dir(path)


async def test_writing_replaces_a_link_and_never_follows_it(sandbox: Sandbox) -> None:
    await sandbox.exec("echo target >target; ln -s target link")
    await sandbox.write_file("link", b"new")
    assert await sandbox.read_file("target") == b"target\n"
    assert await sandbox.read_file("link") == b"new"
    assert [entry.name for entry in await sandbox.list_dir()] == ["link", "target"]


PROGRAMS = (
    "print(__name__, __import__('sys').argv)",
    "import helper\ntry:\n    helper.f()\nexcept KeyError as e:\n    raise ValueError from e",
    "def f(:\n  pass",
    "exit(7)",
    "raise SystemExit('a message')",
    "raise SystemExit(-1)",
    "import os; os._exit(4)",
    "import sys; print(sys.stdin.read()[::-1]); sys.stderr.write('e')",
    "x: list[int] = [1]; print(__annotations__, [y for y in x if x])",
    "import atexit, threading, time\n"
    "atexit.register(print, 'exit handler')\n"
    "def late():\n    time.sleep(0.05)\n    print('late thread')\n"
    "threading.Thread(target=late).start()",
    "class A:\n    def __del__(self):\n        print('destructor', flush=True)\na = A()",
    "f = open('unflushed', 'w'); f.write('kept')",
    "print(open('unflushed').read())",
    "import subprocess; print(subprocess.run(['echo', 'x'], capture_output=True).stdout)",
    "import multiprocessing as m\n"
    "def g(x):\n    return x * x\n"
    "print(m.get_context('fork').Pool(2).map(g, [1, 2]))",
    "import asyncio; print(asyncio.run(asyncio.sleep(0, 'slept')))",
    "import pickle\nclass P:\n    pass\nprint(pickle.loads(pickle.dumps(P())).__class__)",
    "import os; print(sorted(os.listdir('/proc/self/fd')), os.getcwd())",
    "import signal; print(signal.getsignal(2), signal.getsignal(17))",
    "print('no newline', end='')",
    "import os; os.kill(os.getpid(), 15)",
    "import sys; sys.excepthook = lambda *a: print('hooked', a[1]); 1 / 0",
    "import sys; sys.stdout.close()",
    "import os; os.close(1); print('lost')",
)


async def test_python_programs_behave_as_under_python(sandbox: Sandbox) -> None:
    await sandbox.write_file("helper.py", b"def f():\n    raise KeyError('x')\n")
    different = {}
    for code in PROGRAMS:
        seen = []
        for result in (
            await sandbox.run_python(code, stdin=b"input"),
            await sandbox.exec(["python3", "-c", code], stdin=b"input"),
        ):
            seen.append((result.status, result.exit_code, result.stdout, result.stderr))
        if seen[0] != seen[1]:
            different[code] = seen
    assert different == {}


async def test_nothing_of_a_python_program_is_left_for_the_next(sandbox: Sandbox) -> None:
    await sandbox.run_python(
        "import sys, os; sys.leftover = 1; os.environ['L'] = '1'; os.chdir('/')"
    )
    result = await sandbox.run_python(
        "import sys, os; print(hasattr(sys, 'leftover'), 'L' in os.environ, os.getcwd())"
    )
    assert result.stdout == "False False /work\n"


async def test_a_cancelled_call_stops_its_program_and_the_sandbox_goes_on(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await sandbox.exec("echo $$ >pid; exec sleep 60")
    began = time.monotonic()
    result = await sandbox.exec("kill -0 $(cat pid) && echo still there; echo next")
    assert result.stdout == "next\n"
    assert time.monotonic() - began < 2


async def test_calls_at_the_same_time_take_turns(sandbox: Sandbox) -> None:
    results = await asyncio.gather(*(sandbox.exec(f"echo {n}") for n in range(20)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(20)]


async def test_many_sandboxes_do_not_see_each_other(provider: SandboxProvider) -> None:
    sandboxes = await asyncio.gather(*(provider.start(SandboxSpec()) for _ in range(5)))
    for number, sandbox in enumerate(sandboxes):
        await sandbox.write_file("mine", str(number).encode())
    for number, sandbox in enumerate(sandboxes):
        assert await sandbox.read_file("mine") == str(number).encode()
    await asyncio.gather(*(sandbox.close() for sandbox in sandboxes))


async def test_closing_is_quick_final_and_repeatable(provider: SandboxProvider) -> None:
    sandbox = await provider.start(SandboxSpec())
    running = asyncio.create_task(sandbox.exec("sleep 60"))
    await asyncio.sleep(0)
    began = time.monotonic()
    await asyncio.gather(sandbox.close(), sandbox.close())
    await sandbox.close()
    assert time.monotonic() - began < 3
    assert not await sandbox.is_alive()
    with pytest.raises(SandboxLost):
        await running
    with pytest.raises(SandboxLost):
        await sandbox.exec("true")


async def test_a_sandbox_dies_of_old_age(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(ttl=1))) as sandbox:
        with pytest.raises(SandboxLost, match="ttl"):
            await sandbox.exec("sleep 60")
        assert not await sandbox.is_alive()


async def test_the_environment_of_a_spec_reaches_every_program(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec(env={"TASK": "x y"})) as sandbox:
        assert (await sandbox.exec("echo $TASK")).stdout == "x y\n"
        assert (await sandbox.run_python("import os; print(os.environ['TASK'])")).stdout == "x y\n"
