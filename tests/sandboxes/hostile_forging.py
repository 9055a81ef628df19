"""Hostile: forged replies, forged logs, and programs that go for the agent or the neighbours."""

from __future__ import annotations

import asyncio
import json
import os

import pytest

from tests.sandboxes.hostile_host import SMALL, Host, descendants
from workers.sandboxes.protocol import Sandbox, SandboxProvider
from workers.sandboxes.spec import SandboxSpec

FRAME = json.dumps(
    {"id": 1, "status": "ok", "exit_code": 0, "truncated": [False, False], "duration": 0.0,
     "cpu": 0.0, "peak": 0, "raw": [3, 0]}
)  # fmt: skip


async def test_a_program_cannot_forge_its_result(small: Sandbox) -> None:
    """No descriptor of the agent is open in a program, so nothing can be written to the worker."""
    result = await small.run_python(
        "import os\n"
        f"frame = {FRAME!r}.encode()\n"
        "frame = len(frame).to_bytes(4, 'big') + frame + b'won'\n"
        "for fd in range(3, 300):\n"
        "    try: os.write(fd, frame); print('wrote to', fd)\n"
        "    except OSError: pass\n"
        "for pid in os.listdir('/proc'):\n"
        "    if not pid.isdigit() or int(pid) == os.getpid(): continue\n"
        "    for fd in range(40):\n"
        "        try:\n"
        "            with open(f'/proc/{pid}/fd/{fd}', 'wb', buffering=0) as file:\n"
        "                file.write(frame); print('wrote to', pid, fd)\n"
        "        except OSError: pass\n"
        "raise SystemExit(5)"
    )
    assert (result.stdout, result.exit_code) == ("", 5)


@pytest.mark.parametrize("how", ["shell", "python"])
async def test_output_that_looks_like_a_reply_is_output(small: Sandbox, how: str) -> None:
    forged = len(FRAME).to_bytes(4, "big") + FRAME.encode() + b"won"
    await small.write_file("forged", forged * 3)
    if how == "shell":
        result = await small.exec("cat forged; cat forged >&2; exit 7", on_output=lambda *_: None)
    else:
        result = await small.run_python(
            "import shutil, sys\n"
            "for out in (sys.stdout, sys.stderr): out.buffer.write(open('forged', 'rb').read())\n"
            "raise SystemExit(7)",
            on_output=lambda *_: None,
        )
    assert (result.status, result.exit_code) == ("error", 7)
    assert result.stdout.encode() == result.stderr.encode() == forged * 3


async def test_what_looks_like_the_log_of_the_jail_changes_nothing(small: Sandbox) -> None:
    """Statuses come from the kernel and the agent, never from words."""
    log = (
        "[I][2030-01-01T00:00:00+0000] pid=2 run time >= time limit (1 >= 1). Killing it\n"
        "[E][2030-01-01T00:00:00+0000][1] clone(flags) failed: out of memory, oom_kill 1\n"
        "Killed\nMemoryError\nsandbox lost: timeout\n"
    )
    await small.write_file("log", log.encode())
    for exit_code, status in ((0, "ok"), (1, "error"), (137, "error"), (124, "error")):
        result = await small.exec(f"cat log >&2; cat log; exit {exit_code}")
        assert (result.status, result.exit_code, result.stderr) == (status, exit_code, log)


async def test_the_agent_cannot_be_reached(small: Sandbox) -> None:
    result = await small.run_python(
        "import os, signal\n"
        "def tried(f):\n"
        "    try: return f() and 'done'\n"
        "    except OSError as error: return type(error).__name__\n"
        "for n in range(1, 65):\n"
        "    try: os.kill(1, n)\n"
        "    except OSError: pass\n"
        "seen = {tried(lambda: open(f'/proc/1/{name}', 'rb').read()) for name in\n"
        "        ('environ', 'maps', 'mem', 'auxv', 'stack', 'syscall', 'io')}\n"
        "seen |= {tried(lambda: os.listdir(f'/proc/1/{name}')) for name in\n"
        "         ('fd', 'task/1/fd', 'cwd', 'map_files')}\n"
        "seen |= {tried(lambda: open('/proc/1/mem', 'r+b'))}\n"
        "print('reached' if 'done' in seen else 'refused', flush=True)\n"
        "os.kill(0, signal.SIGTERM)"
    )
    assert result.stdout == "refused\n"
    assert (result.status, result.exit_code) == ("killed", 143)
    result = await small.exec("kill -9 1; kill -INT 1; ls /proc/1/fd; cat /proc/1/environ; echo on")
    assert result.stdout == "on\n"
    assert result.stderr.count("No such file") + result.stderr.count("denied") == 2
    assert (await small.exec("kill -9 -1; true")).exit_code in (0, 137)


async def test_a_program_cannot_change_what_the_next_one_runs_on(small: Sandbox) -> None:
    """Modules and start-up files in the work folder are the program's own, never the agent's."""
    trap = b"import os\nopen('/work/sprung', 'a').write(f'{os.getpid()}\\n')\n"
    for name in ("os", "json", "select", "signal", "sitecustomize", "usercustomize", "fcntl", "gc"):
        await small.write_file(f"{name}.py", trap)
        await small.write_file(f".local/lib/python3/site-packages/{name}.py", trap)
    await small.exec("true")
    await small.write_file("x", b"x")
    await small.list_dir()
    assert "sprung" not in [entry.name for entry in await small.list_dir()]
    await small.exec("rm -rf * .local")


async def test_neighbours_do_not_reach_each_other(
    provider: SandboxProvider, untouched_host: Host
) -> None:
    """Also where both are the same user outside."""
    spec = SandboxSpec(limits=SMALL)
    async with await provider.start(spec) as victim, await provider.start(spec) as attacker:
        await victim.exec("umask 0; echo secret >/tmp/secret; echo secret >/dev/shm/secret")
        if "background" in provider.capabilities:
            await victim.exec(
                ["python3", "-c",
                 "import socket, time\n"
                 "s = socket.create_server(('127.0.0.1', 8000))\n"
                 "a = socket.socket(socket.AF_UNIX); a.bind('\\0victim'); a.listen()\n"
                 "open('/work/ready', 'w').close(); time.sleep(60)"],
                background=True,
            )  # fmt: skip
        outside = [pid for pid in descendants(os.getpid()) if pid not in untouched_host.below]
        assert len(outside) >= (4 if attacker.backend == "nsjail" else 0)
        result = await attacker.run_python(
            "import json, os, signal, socket\n"
            "def tried(f):\n"
            "    try: f(); return True\n"
            "    except OSError: return False\n"
            "def connect(family, address):\n"
            "    with socket.socket(family) as s: s.settimeout(1); s.connect(address)\n"
            f"pids = [p for p in {outside!r} + list(range(2, 400)) if p != os.getpid()]\n"
            "print(json.dumps({\n"
            "  'signalled': [p for p in pids if tried(lambda: os.kill(p, signal.SIGKILL))],\n"
            "  'seen': [p for p in pids if tried(lambda: os.stat(f'/proc/{p}'))],\n"
            "  'by descriptor': [p for p in pids if tried(lambda: os.pidfd_open(p))],\n"
            "  'read': [p for p in ('/tmp/secret', '/dev/shm/secret') if os.path.exists(p)],\n"
            "  'connected': [tried(lambda: connect(2, ('127.0.0.1', 8000))),\n"
            "                tried(lambda: connect(1, '\\0victim'))]}))\n"
        )
        seen = json.loads(result.stdout)
        assert seen["connected"] == [False, False]
        assert [seen[key] for key in ("signalled", "seen", "by descriptor", "read")] == [[]] * 4
        await attacker.exec("kill -9 -1")
        for sandbox in (victim, attacker):
            assert (await sandbox.exec("echo fine")).stdout == "fine\n"
        assert await victim.read_file("/tmp/secret") == b"secret\n"


async def test_a_neighbour_that_takes_everything_slows_nobody_to_death(
    provider: SandboxProvider,
) -> None:
    spec = SandboxSpec(limits=SMALL)
    async with await provider.start(spec) as hog, await provider.start(spec) as other:
        bomb = asyncio.create_task(
            hog.run_python(
                "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", timeout=1
            )
        )
        for _ in range(5):
            result = await other.exec("echo fine; (echo a; echo b) | sort -r", timeout=10)
            assert result.stdout == "fine\nb\na\n", result
        assert (await bomb).status in ("timeout", "pids_limit")
