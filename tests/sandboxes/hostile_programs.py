"""Hostile: programs that take all there is of memory, processes and time, or never go away."""

from __future__ import annotations

import time

import pytest

from tests.helpers import eventually
from tests.sandboxes.hostile_host import SMALL, by_cgroup, usable_or_lost, works
from workers.sandboxes.protocol import Sandbox, SandboxProvider
from workers.sandboxes.spec import Limits, SandboxSpec

EVERYBODY = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"


async def test_a_fork_bomb_is_contained(small: Sandbox) -> None:
    result = await small.run_python(
        "import os, time\n"
        "count = 0\n"
        "try:\n"
        "    while True:\n"
        "        if os.fork() == 0: time.sleep(60)\n"
        "        count += 1\n"
        "finally: print(count, flush=True)\n"
    )
    assert result.status == ("pids_limit" if by_cgroup(small) else "error")
    assert 8 <= int(result.stdout) <= SMALL.pids
    bomb = await small.exec("f() { f | f & }; f; sleep 60", timeout=0.8)
    assert bomb.status in ("timeout", "pids_limit", "error")


async def test_a_fork_bomb_does_not_reach_into_the_next_step(small: Sandbox) -> None:
    for _ in range(3):
        await small.run_python(
            "import os, signal, time\n"
            "for n in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
            "for _ in range(30):\n"
            "    try:\n"
            "        if os.fork() == 0:\n"
            "            os.setsid()\n"
            "            while True:\n"
            "                try: os.fork()\n"
            "                except OSError: time.sleep(0.001)\n"
            "    except OSError: pass\n",
            timeout=1,
        )
        left = await small.run_python(
            "import os; print(sum(name.isdigit() for name in os.listdir('/proc')))"
        )
        assert int(left.stdout) <= 2, "this program, and the agent where it can be seen"


async def test_a_bomb_in_the_background_harms_only_its_own_sandbox(
    provider: SandboxProvider,
) -> None:
    if "background" not in provider.capabilities:
        pytest.skip("this back-end leaves nothing running in the background")
    async with await provider.start(SandboxSpec(limits=SMALL)) as sandbox:
        await sandbox.write_file("mine", b"mine")
        await sandbox.exec(
            ["python3", "-c",
             "import os, time\n"
             "while True:\n"
             "    try: os.fork()\n"
             "    except OSError: time.sleep(0.01)"],
            background=True,
        )  # fmt: skip
        began = time.monotonic()
        for _ in range(5):
            result = await sandbox.exec("echo x", timeout=2)
            assert result.stdout == "x\n" or result.status != "ok"
            assert await sandbox.read_file("mine") == b"mine"
        assert time.monotonic() - began < 20
        await works(provider)


async def test_many_background_programs_end_at_the_limit(provider: SandboxProvider) -> None:
    if "background" not in provider.capabilities:
        pytest.skip("this back-end leaves nothing running in the background")
    async with await provider.start(SandboxSpec(limits=SMALL)) as sandbox:
        statuses = [
            (await sandbox.exec(["sleep", "300"], background=True)).status for _ in range(30)
        ]
        assert statuses.count("ok") <= SMALL.pids
        assert statuses[-1] in ("error", "pids_limit")
        assert await sandbox.is_alive()


async def test_a_thread_bomb_is_contained(small: Sandbox) -> None:
    result = await small.run_python(
        "import threading, time\n"
        "n = 0\n"
        "try:\n"
        "    while True:\n"
        "        threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1\n"
        "except RuntimeError: print(n)\n"
    )
    assert int(result.stdout) <= SMALL.pids


@pytest.mark.parametrize("processes", [1, 6])
async def test_a_memory_bomb_is_killed(small: Sandbox, processes: int) -> None:
    """One process past the limit, or several that only pass it together."""
    result = await small.run_python(
        "import os, time\n"
        f"for _ in range({processes - 1}):\n"
        "    if os.fork() == 0: break\n"
        "keep = []\n"
        f"for _ in range({80 if processes == 1 else 24}):\n"
        "    keep.append(b'x' * (1 << 20)); time.sleep(0.002)\n"
        "time.sleep(1)\n"
        "pid, status = os.wait()\n"
        "raise SystemExit(status != 0)\n",
        timeout=10,
    )
    assert result.status == "oom", result


HOARDS = {
    "shared mapping": "import mmap\n"
    "def more():\n"
    "    page = mmap.mmap(-1, 1 << 20); page.write(b'x' * (1 << 20)); return page",
    "memfd": "import os\n"
    "def more():\n"
    "    fd = os.memfd_create('x'); os.write(fd, b'x' * (1 << 20)); return fd",
    "few large memfds": "import os\n"
    "fds = []\n"
    "def more():\n"
    "    if not fds or os.fstat(fds[-1]).st_size >= 4 << 20: fds.append(os.memfd_create('x'))\n"
    "    os.write(fds[-1], b'x' * (1 << 20))",
    "System V": "import ctypes\n"
    "libc = ctypes.CDLL(None, use_errno=True); libc.shmat.restype = ctypes.c_void_p\n"
    "def more():\n"
    "    segment = libc.shmget(0, 1 << 20, 0o1600)\n"
    "    if segment < 0: raise OSError(ctypes.get_errno(), 'shmget')\n"
    "    place = libc.shmat(segment, None, 0)\n"
    "    ctypes.memset(place, 1, 1 << 20); libc.shmdt(ctypes.c_void_p(place))",
    "locked": "import ctypes, mmap\n"
    "def more():\n"
    "    page = mmap.mmap(-1, 1 << 20)\n"
    "    ctypes.CDLL(None).mlock(ctypes.addressof(ctypes.c_char.from_buffer(page)), 1 << 20)\n"
    "    page.write(b'x' * (1 << 20)); return page",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOARDS)
async def test_memory_counts_whatever_it_is_made_of(provider: SandboxProvider, kind: str) -> None:
    """What nobody maps lives on after its program, so the kernel may end the sandbox for it."""
    async with await provider.start(SandboxSpec(limits=SMALL)) as sandbox:
        result = await sandbox.run_python(
            f"{HOARDS[kind]}\n"
            "import time\n"
            "kept = []\n"
            "for n in range(256):\n"
            "    kept.append(more()); print(n + 1, flush=True); time.sleep(0.004)",
            timeout=15,
        )
        assert result.status in ("oom", "error", "killed"), result
        held = len(result.stdout.split())
        assert held <= SMALL.memory_mb + 32, f"{held} MiB with a limit of {SMALL.memory_mb}"
        await usable_or_lost(sandbox)
    await works(provider)


async def test_many_small_programs_are_counted_together(provider: SandboxProvider) -> None:
    """The kernel may take the agent, which is larger than each; that is told for what it is."""
    limits = SMALL.model_copy(update={"pids": 120})
    async with await provider.start(SandboxSpec(limits=limits)) as sandbox:
        result = await sandbox.run_python(
            "import os, time\n"
            "for _ in range(110):\n"
            "    if os.fork() == 0:\n"
            "        keep = bytearray(1 << 20)\n"
            "        for n in range(0, len(keep), 4096): keep[n] = 1\n"
            "        time.sleep(60)\n"
            "time.sleep(60)\n",
            timeout=10,
        )
        assert result.status == "oom", result
        await usable_or_lost(sandbox)
    await works(provider)


async def test_memory_of_programs_that_let_nobody_look_counts_too(small: Sandbox) -> None:
    """They make themselves undumpable, which takes their /proc away from others of the user."""
    result = await small.run_python(
        "import ctypes, os, time\n"
        "ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        keep = bytearray(40 << 20)\n"
        "        for n in range(0, len(keep), 4096): keep[n] = 1\n"
        "        time.sleep(60)\n"
        "raise SystemExit(os.wait()[1] != 0)\n",
        timeout=10,
    )
    assert result.status == "oom", result


async def test_memory_a_background_program_ran_out_of_is_not_blamed_on_a_later_step(
    provider: SandboxProvider, small: Sandbox
) -> None:
    if "background" not in provider.capabilities:
        pytest.skip("this back-end leaves nothing running in the background")
    hoard = "python3 -c 'x = b\"x\" * (200 << 20)'"
    await small.exec(f"{hoard} || echo over >over", background=True)

    async def over() -> bool:
        return [entry.name for entry in await small.list_dir()] == ["over"]

    await eventually(over, "it ran out of memory")
    result = await small.run_python("raise ValueError('a plain bug')")
    assert result.status == "error", result


async def test_memory_shared_after_a_fork_counts_once(provider: SandboxProvider) -> None:
    spec = SandboxSpec(limits=SMALL.model_copy(update={"memory_mb": 96}))
    async with await provider.start(spec) as sandbox:
        result = await sandbox.run_python(
            "import os, time\n"
            "keep = b'x' * (48 << 20)\n"
            "for _ in range(4):\n"
            "    if os.fork() == 0: time.sleep(0.3); os._exit(0)\n"
            "for _ in range(4): os.wait()\n"
            "print('together')"
        )
        assert result.stdout == "together\n", result


async def test_a_worker_that_hands_over_more_than_fits_gets_an_answer(
    provider: SandboxProvider,
) -> None:
    """A file, or an input, as large as all the memory there is."""
    limits = Limits(memory_mb=32, disk_mb=64, file_mb=64, read_bytes=64 << 20)
    for use in ("input", "file"):
        async with await provider.start(SandboxSpec(limits=limits)) as sandbox:
            if use == "input":
                result = await sandbox.exec("wc -c", stdin=bytes(60 << 20))
                assert result.status in ("ok", "oom", "error")
            else:
                try:
                    await sandbox.write_file("big", bytes(60 << 20))
                except Exception as error:
                    assert type(error).__name__ in ("SandboxPathError", "SandboxLost")
            await usable_or_lost(sandbox)
    await works(provider)


async def test_a_processor_hog_is_stopped(provider: SandboxProvider) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(cpu=1))) as sandbox:
        result = await sandbox.exec(["sh", "-c", "while :; do :; done"], timeout=10)
        assert result.status == "timeout"
        assert result.cpu_seconds == pytest.approx(1, abs=0.3)
        assert await sandbox.is_alive()


async def test_a_stopped_program_is_still_killed_in_time(small: Sandbox) -> None:
    began = time.monotonic()
    result = await small.exec("kill -STOP $$; echo never", timeout=0.3)
    assert (result.status, result.stdout) == ("timeout", "")
    assert time.monotonic() - began < 2


STUBBORN = {
    "stops everybody": "sleep 50 & sleep 51 & kill -STOP -1; kill -STOP $$; echo never",
    "closes everything": "exec <&- >&- 2>&-; sleep 60",
    "runs as daemons": "for n in 1 2; do setsid sh -c 'trap \"\" TERM; sleep 60' & done; wait",
    "forks and exits": "setsid sh -c '(sleep 60 &) ; sleep 60' >/dev/null 2>&1 & sleep 60",
    "writes without end": "exec 3>&1; while :; do echo x >/dev/null; done",
    "sleeps in the kernel": "mkfifo never; cat never",
}


@pytest.mark.parametrize("how", STUBBORN)
async def test_a_program_that_will_not_end_is_ended_in_time(small: Sandbox, how: str) -> None:
    began = time.monotonic()
    result = await small.exec(STUBBORN[how], timeout=0.4)
    assert (result.status, result.stdout) == ("timeout", "")
    assert result.duration < 1.2
    assert time.monotonic() - began < 2
    assert "sleep" not in (await small.exec(EVERYBODY)).stdout


async def test_a_daemon_does_not_outlive_its_step(small: Sandbox) -> None:
    result = await small.run_python(
        "import os, time\n"
        "for n in (0, 1, 2): os.close(n)\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        while True: open('beat', 'w').write(str(time.monotonic())); time.sleep(0.01)\n"
        "    os._exit(0)\n"
        "time.sleep(0.1); os._exit(0)"
    )
    assert result.status == "ok"
    before = await small.read_file("beat")
    assert (await small.exec("sleep 0.2; ls /proc | grep -c '^[0-9]'")).status == "ok"
    assert await small.read_file("beat") == before


@pytest.mark.parametrize("stream", ["1", "2", "both"])
async def test_endless_output_ends(small: Sandbox, stream: str) -> None:
    began = time.monotonic()
    command = {"1": "yes", "2": "yes >&2", "both": "yes & yes >&2"}[stream]
    result = await small.exec(command, timeout=15)
    assert result.status == "output_limit"
    assert time.monotonic() - began < 5
    assert max(len(result.stdout), len(result.stderr)) == SMALL.output_bytes
    assert (result.stdout + result.stderr).replace("y\n", "") in ("", "y")


async def test_every_signal_to_everybody_ends_nobody_else(small: Sandbox) -> None:
    for signals in ("for n in range(1, 65)", "for n in [14] * 5000 + [17] * 5000"):
        result = await small.run_python(
            "import os, signal\n"
            "for n in set(range(1, 65)) - {9, 19, 32, 33}: signal.signal(n, signal.SIG_IGN)\n"
            f"{signals}:\n"
            "    try: os.kill(1, n)\n"
            "    except OSError: pass\n"
            "    try: n in (9, 19) or os.kill(-1, n)\n"
            "    except OSError: pass\n"
            "print('still here')"
        )
        assert result.stdout == "still here\n", result
        assert await small.is_alive()
    await small.keep_alive(60)
    assert (await small.exec("kill -9 -1; true")).exit_code in (0, 137)


async def test_killing_its_keeper_does_not_free_a_background_program(
    provider: SandboxProvider, small: Sandbox
) -> None:
    if "background" not in provider.capabilities:
        pytest.skip("this back-end leaves nothing running in the background")
    await small.exec("echo $PPID >keeper; exec sleep 303", background=True)

    async def known() -> bool:
        return [e.name for e in await small.list_dir() if e.size] == ["keeper"]

    await eventually(known, "it runs")
    await small.exec("kill -9 $(cat keeper)")
    await small.exec("true")  # it may have become ours a moment too late for the step that did it
    assert "sleep" not in (await small.exec(EVERYBODY)).stdout


async def test_a_background_program_that_stops_everybody_is_ended_with_a_result(
    provider: SandboxProvider, small: Sandbox
) -> None:
    if "background" not in provider.capabilities:
        pytest.skip("this back-end leaves nothing running in the background")
    await small.exec(
        ["python3", "-c",
         "import os, signal\n"
         "open('stops', 'w').close()\n"
         "while True:\n"
         "    try: os.kill(-1, signal.SIGSTOP)\n"
         "    except OSError: pass"],
        background=True,
    )  # fmt: skip

    async def stops() -> bool:
        return [entry.name for entry in await small.list_dir()] == ["stops"]

    await eventually(stops, "it runs")
    began = time.monotonic()
    result = await small.exec("sleep 0.2; echo x", timeout=1)
    assert result.status in ("error", "timeout", "ok"), result
    assert time.monotonic() - began < 9
    await small.end_background()
    assert "SIGSTOP" not in (await small.exec(EVERYBODY)).stdout
