"""Conformance: programs start as asked, end with the right status, and leave nothing running."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time

import pytest

from workers.sandboxes.agent_sandbox import ENV
from workers.sandboxes.protocol import Sandbox, SandboxProvider
from workers.sandboxes.spec import Limits, SandboxSpec

SHELLS_OWN = {"PWD", "OLDPWD", "SHLVL", "_"}
"""Variables that a shell sets for itself."""


async def test_a_shell_line_returns_its_output_and_exit_code(
    sandbox: Sandbox, quirks: frozenset[str]
) -> None:
    result = await sandbox.exec("echo out; echo err >&2; exit 3")
    assert (result.status, result.exit_code) == ("error", 3)
    assert (result.stdout, result.stderr) == ("out\n", "err\n")
    assert not result.stdout_truncated
    assert result.log is None
    assert result.duration < 5
    if "usage" not in quirks:
        assert result.cpu_seconds is not None
        assert result.cpu_seconds < 1
        assert result.peak_memory_bytes is not None
        assert result.peak_memory_bytes > 100_000


async def test_a_program_gets_its_arguments_untouched(sandbox: Sandbox) -> None:
    result = await sandbox.exec(
        ["printf", "%s|", "a b", "$HOME", "*", "", "好", "two\nlines", "'\""]
    )
    assert (result.status, result.exit_code) == ("ok", 0)
    assert result.stdout == "a b|$HOME|*||好|two\nlines|'\"|"


async def test_folder_environment_and_input_are_those_asked_for(sandbox: Sandbox) -> None:
    await sandbox.write_file("sub/x", b"")
    result = await sandbox.exec(
        "pwd; echo $COLOUR; cat", cwd="/work/sub", env={"COLOUR": "blue"}, stdin=b"in\xff" * 50_000
    )
    assert result.stdout == "/work/sub\nblue\n" + "in�" * 50_000


async def test_every_exit_code_is_told_as_it_was(sandbox: Sandbox) -> None:
    for code in (0, 1, 2, 42, 126, 127, 128, 137, 255):
        by_shell = await sandbox.exec(f"exit {code}")
        by_python = await sandbox.run_python(f"raise SystemExit({code})")
        for result in (by_shell, by_python):
            assert (result.status, result.exit_code) == ("error" if code else "ok", code)


async def test_a_signal_is_told_as_one(sandbox: Sandbox) -> None:
    for name in ("HUP", "INT", "ABRT", "SEGV", "KILL", "TERM", "PIPE", "USR1"):
        number = signal.Signals[f"SIG{name}"].value
        for result in (
            await sandbox.exec(["sh", "-c", f"kill -{name} $$; sleep 5"]),
            await sandbox.run_python(
                f"import os, signal\nsignal.signal({number}, 0) if {number} != 9 else None\n"
                f"os.kill(os.getpid(), {number})"
            ),
        ):
            assert (result.status, result.exit_code) == ("killed", 128 + number)


async def test_a_killed_program_never_counts_as_a_success(sandbox: Sandbox) -> None:
    for result in (
        await sandbox.exec("echo done; kill -9 $$"),
        await sandbox.exec("echo done; exec sleep 60", timeout=0.2),
        await sandbox.run_python("print('done', flush=True); import os; os.kill(0, 9)"),
        await sandbox.run_python("while True: print('done')", timeout=5),
    ):
        assert result.status != "ok"
        assert result.exit_code != 0
        assert result.stdout.startswith("done\n")


async def test_a_command_that_cannot_start_says_why(sandbox: Sandbox) -> None:
    for command, cwd, reason in (
        (["no-such-program"], None, "not found"),
        (["echo"], "/no/such/folder", "No such file"),
        (["echo", "nul\0byte"], None, "null byte"),
        (["/work"], None, "denied"),
        (["echo", "lone \ud800"], None, "surrogates"),
        ([], None, "no command"),
        (["echo", "x" * (5 << 20)], None, "too long"),
        ("true; #" + "好" * (6 << 20), None, "too long"),
    ):
        result = await sandbox.exec(command, cwd=cwd)
        assert (result.status, result.exit_code) == ("error", None), reason
        assert reason in result.stderr
    result = await sandbox.exec(["true"], env={"A=B": "x"})
    assert (result.status, result.exit_code) == ("error", None)
    assert (await sandbox.exec("no-such-program")).exit_code == 127
    assert (await sandbox.exec("echo on")).stdout == "on\n"


async def test_programs_speak_unicode_whatever_their_bytes(sandbox: Sandbox) -> None:
    said = await sandbox.exec("printf 'é好\\360\\237\\246\\212\\377\\000end'; printf '\\303' >&2")
    assert said.stdout == "é好🦊�\0end"
    assert said.stderr == "�"
    python = await sandbox.run_python("print('é好🦊', ascii('\\udc80'), len('好'))")
    assert python.stdout == "é好🦊 '\\udc80' 1\n"
    lone = await sandbox.run_python("print('x\ud800')")
    assert lone.exit_code == 1
    assert "surrogates" in lone.stderr or "utf-8" in lone.stderr


async def test_input_is_given_once_and_whole(sandbox: Sandbox) -> None:
    binary = bytes(range(256)) * 8000  # 2 MB: far more than a pipe holds
    result = await sandbox.exec("sha256sum; cat", stdin=binary)
    assert result.stdout.split()[0] == hashlib.sha256(binary).hexdigest()
    assert (await sandbox.exec("cat; echo end")).stdout == "end\n"
    unread = await sandbox.exec("echo unread", stdin=binary)
    assert (unread.status, unread.stdout) == ("ok", "unread\n")
    some = await sandbox.run_python("print(len(input()))", stdin=b"12345\n" + binary)
    assert (some.status, some.stdout) == ("ok", "5\n")
    closed = await sandbox.exec("exec <&-; sleep 0.1; echo closed", stdin=binary)
    assert (closed.status, closed.stdout) == ("ok", "closed\n")


@pytest.mark.parametrize("how", ["shell", "python"])
async def test_a_timeout_keeps_what_was_written(sandbox: Sandbox, how: str) -> None:
    began = time.monotonic()
    if how == "shell":
        result = await sandbox.exec(
            "trap '' TERM INT HUP; echo before; echo oops >&2; sleep 60", timeout=0.4
        )
    else:
        result = await sandbox.run_python(
            "import signal, sys, time\n"
            "for n in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
            "print('before', flush=True); print('oops', file=sys.stderr)\n"
            "while True: time.sleep(60)",
            timeout=0.4,
        )
    assert result.status == "timeout"
    assert (result.stdout, result.stderr) == ("before\n", "oops\n")
    assert result.exit_code != 0
    assert 0.4 <= result.duration < 0.9
    assert time.monotonic() - began < 2
    assert await sandbox.is_alive()


async def test_hardly_any_time_is_a_timeout_too(sandbox: Sandbox) -> None:
    began = time.monotonic()
    for timeout in (0, 0.001):
        for result in (
            await sandbox.exec("sleep 60", timeout=timeout),
            await sandbox.run_python("import time; time.sleep(60)", timeout=timeout),
        ):
            assert result.status == "timeout"
    assert time.monotonic() - began < 2
    assert (await sandbox.exec("echo next")).stdout == "next\n"


async def test_without_a_timeout_the_limit_of_the_spec_holds(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(wall=0.3))) as sandbox:
        assert (await sandbox.exec("sleep 60")).status == "timeout"
        assert (await sandbox.run_python("while True: pass")).status == "timeout"
        assert (await sandbox.exec("sleep 0.6", timeout=5)).status == "ok"


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
    left = await sandbox.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "sleep" not in left.stdout


async def test_only_files_stay_from_one_step_to_the_next(sandbox: Sandbox) -> None:
    await sandbox.exec("echo kept >kept; cd /tmp; echo too >too; export LEFT=1; umask 077; X=1")
    await sandbox.run_python(
        "import sys, os\nsys.leftover = 1; os.environ['LEFT'] = '1'; os.chdir('/'); os.umask(0o077)"
    )
    result = await sandbox.exec("pwd; cat kept /tmp/too; echo ${LEFT-gone} ${X-gone}; umask")
    assert result.stdout == "/work\nkept\ntoo\ngone gone\n0022\n"
    result = await sandbox.run_python(
        "import sys, os; print(hasattr(sys, 'leftover'), 'LEFT' in os.environ, os.getcwd())"
    )
    assert result.stdout == "False False /work\n"


async def test_programs_see_the_promised_environment_and_nothing_of_the_host(
    provider: SandboxProvider, quirks: frozenset[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEET_TEST_SECRET", "do not tell")
    spec = SandboxSpec(env={"TASK": "x y\nz", "EMPTY": ""})
    async with await provider.start(spec) as sandbox:
        by_program = await sandbox.exec(["env", "-0"])
        by_python = await sandbox.run_python(
            "import os; print(*(f'{k}={v}' for k, v in os.environ.items()), sep='\\0', end='\\0')"
        )
        for result in (by_program, by_python):
            seen = dict(pair.split("=", 1) for pair in result.stdout.split("\0") if pair)
            assert seen["TASK"] == "x y\nz"
            assert (seen["EMPTY"], seen["HOME"]) == ("", "/work")
            assert "FLEET_TEST_SECRET" not in seen
            assert "do not tell" not in result.stdout
            if "environment" not in quirks:
                assert set(seen) - SHELLS_OWN == {*ENV, "TASK", "EMPTY"}
        only_here = await sandbox.exec("echo $TASK $MORE", env={"TASK": "a", "MORE": "b"})
        assert only_here.stdout == "a b\n"
        assert (await sandbox.exec("echo $TASK ${MORE-none}")).stdout == "x y z none\n"
    assert os.environ["FLEET_TEST_SECRET"] == "do not tell"


async def test_calls_at_the_same_time_take_turns(sandbox: Sandbox) -> None:
    results = await asyncio.gather(*(sandbox.exec(f"echo {n}; sleep 0.01") for n in range(12)))
    assert [result.stdout for result in results] == [f"{n}\n" for n in range(12)]
    await sandbox.write_file("x", b"x")
    ran, read, listed, alive = await asyncio.gather(
        sandbox.exec("sleep 0.2; echo ran"),
        sandbox.read_file("x"),
        sandbox.list_dir(),
        sandbox.is_alive(),
    )
    assert (ran.stdout, read, [entry.name for entry in listed]) == ("ran\n", b"x", ["x"])
    assert alive


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
