"""Runs inside a sandbox of somebody else's server, once for each request of the worker.

It lies there as a file beside the agent's, and is started by the server's execd: once as
``python3 inside.py setup``, from then on as ``python3 inside.py step N``. Standard library only,
the syntax of Python 3.9.

execd has to be root, so that programs get a user of their own: they can neither touch this process
nor forge its replies, have no capabilities, and their processes are counted apart from those of
other sandboxes on the same kernel.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WORK = "/work"
TURN_PATIENCE = 10.0  # seconds for a step that was given up to be over
DIES_FIRST = b"500"
FIRST_USER = 10_000  # below it, an image has users of its own
OOM_KILLS = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")
PR_SET_PDEATHSIG, PR_CAPBSET_DROP = 1, 24
# To own the work folder, see into it, stop programs, become their user, and limit what they get.
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 0, 1, 5, 6, 7, 8
NEEDED = (CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETPCAP)
LAST_CAPABILITY, CAPABILITY_VERSION = 63, 0x20080522
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
LIBC = ctypes.CDLL(None)


def setup(folder: str) -> dict[str, Any]:
    """Make the work folder, and the user that programs run as; tell what was found."""
    with open(os.path.join(folder, "setup.json"), "rb") as text:  # noqa: PTH118, PTH123
        wish = json.loads(text.read())
    os.chmod(folder, 0o700)  # noqa: PTH101
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        wish["limits"]["core"] = 0  # as good as ours, and not to be raised
    trouble = missing(os.path.dirname(folder), wish["limits"])  # noqa: PTH120
    if trouble:
        return trouble
    user = FIRST_USER + int(wish["number"]) % (users(int(wish["users"])) - FIRST_USER)
    try:
        os.makedirs(WORK, exist_ok=True)  # noqa: PTH103
        os.chown(WORK, user, user)
        introduce("/etc/passwd", f"agent:x:{user}:{user}::{WORK}:/bin/sh\n")
        introduce("/etc/group", f"agent:x:{user}:\n")
        os.chmod(WORK, 0o700)  # noqa: PTH101
    except OSError as error:
        return {"trouble": f"root cannot make {WORK} its own: {error.strerror}", "of": "image"}
    return {"user": user, "core": wish["limits"]["core"], "python": sys.version.split()[0]}


def missing(above: str, limits: dict[str, int]) -> dict[str, str] | None:
    """Say what keeps programs from being kept apart from what watches them."""
    if os.getuid() != 0:
        trouble = f"its user is {os.getuid()}, but execd, and so we, have to be root there"
        return {"trouble": f"{trouble} to keep programs apart (USER root)", "of": "image"}
    if not may_change_users():
        names = "CHOWN, DAC_OVERRIDE, KILL, SETGID, SETUID, SETPCAP"
        return {"trouble": f"execd lacks one of the capabilities {names}", "of": "server"}
    found = os.stat(above)  # noqa: PTH116
    if found.st_uid != 0 or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
        trouble = f"anybody could put something else in our place in {above}"
        return {"trouble": f"{trouble} (its mode has to be 1777, its owner root)", "of": "image"}
    name = too_high(limits)
    if name:
        had = resource.getrlimit(getattr(resource, name))[1]
        trouble = f"{name} cannot be {limits[name[7:].lower()]}, for the container has {had}"
        return {"trouble": trouble, "of": "server"}
    return None


def too_high(limits: dict[str, int]) -> str | None:
    """Try each limit where it does no harm; return the name of one that the kernel refuses."""
    names = ["RLIMIT_" + name.upper() for name in limits]
    pid = os.fork()
    if pid == 0:
        refused = 0
        for number, value in enumerate(limits.values(), 1):
            try:
                resource.setrlimit(getattr(resource, names[number - 1]), (value, value))
            except (ValueError, OverflowError, OSError):
                refused = refused or number
        os._exit(refused)
    number = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
    return names[number - 1] if number else None


def users(wanted: int) -> int:
    """Return the number of users there are, up to a wanted one."""
    with open("/proc/self/uid_map", encoding="ascii") as ranges:  # noqa: PTH123
        for line in ranges:
            first, _, size = map(int, line.split())
            if first == 0 and size > FIRST_USER:
                return min(size, wanted)
    return 65_536  # there are fewer: then nothing can be given to ours


def introduce(path: str, line: str) -> None:
    """Give the user a name: some programs refuse to work for nobody they know."""
    with open(path, "a", encoding="ascii") as known:  # noqa: PTH123
        known.write(line)


def may_change_users() -> bool:
    """Say whether programs can be another user than we are: root, with the capabilities for it."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as status:  # noqa: PTH123
        held = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return os.getuid() == 0 and all(held >> number & 1 for number in NEEDED)


def step(folder: str, number: str) -> None:
    """Let the agent answer one request, in a process of its own.

    execd kills the process it started, and its group, when nobody listens any more. That process
    only waits here. The one that works has a session of its own, gets SIGTERM when the other dies,
    and then ends everything that it started itself.
    """
    waiter = os.getpid()
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        sys.exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
    os.setsid()
    take_our_turn(os.path.join(folder, "lock"), int(number))  # noqa: PTH118
    note_who_went(os.path.join(folder, "oom"))  # noqa: PTH118
    us = os.getpid()
    os.register_at_fork(after_in_child=lambda: expect_to_go_first(us))
    leave_no_capabilities()
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != waiter:
        sys.exit("nobody waits any more")
    for name in os.listdir(folder):  # noqa: PTH208
        if name.isdigit() and int(name) < int(number):  # was cancelled before its command came
            os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118
    agent = compiled(folder)
    sys.argv = ["agent", os.path.join(folder, number)]  # noqa: PTH118
    exec(agent, {"__name__": "__main__"})  # noqa: S102


def compiled(folder: str) -> Any:
    """Return the agent's code, compiled by the first step: that takes longer than all the rest."""
    import marshal

    cache = os.path.join(folder, f"agent-{sys.hexversion:x}")  # noqa: PTH118
    try:
        with open(cache, "rb") as code:  # noqa: PTH123
            return marshal.load(code)  # noqa: S302 - programs cannot write there
    except FileNotFoundError:
        pass
    with open(os.path.join(folder, "agent.py"), "rb") as source:  # noqa: PTH118, PTH123
        agent = compile(source.read(), "<agent>", "exec", dont_inherit=True)
    with open(f"{cache}.draft", "wb") as draft:  # noqa: PTH123
        marshal.dump(agent, draft)
    os.replace(draft.name, cache)  # noqa: PTH105 - we may be stopped at any moment
    return agent


def take_our_turn(path: str, number: int) -> None:
    """Hold a lock for as long as this process lives, so that steps never overlap.

    The worker asks for one step at a time, so one that still runs is one that it gave up, and
    whose end it could not make happen or see.
    """
    import fcntl

    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + TURN_PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            holder = os.pread(lock, 100, 0).split()
        if len(holder) == 2 and int(holder[0]) > number:
            sys.exit("a later step runs already")
        if time.monotonic() > deadline:
            sys.exit(f"the step before did not end within {TURN_PATIENCE} s")
        if len(holder) == 2:
            stop(int(holder[1]))
        time.sleep(0.02)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{number} {os.getpid()}".encode("ascii"), 0)


def stop(pid: int) -> None:
    try:  # noqa: SIM105 - contextlib costs a millisecond of start
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it just ended


def leave_no_capabilities() -> None:
    """Give up for programs what they could get capabilities from; this process keeps its own."""
    for capability in range(LAST_CAPABILITY + 1):
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    LIBC.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header, sets = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if LIBC.capget(header, sets) == 0:
        sets[2] = sets[5] = 0  # the inheritable ones
        LIBC.capset(header, sets)


def note_who_went(path: str) -> None:
    """Note how many were killed for want of memory before, in case we are the next."""
    for count in OOM_KILLS:
        try:
            with open(count, "rb") as lines, open(path, "wb") as note:  # noqa: PTH123
                note.writelines(line for line in lines if line.startswith(b"oom_kill "))
                return
        except OSError:
            pass


def expect_to_go_first(parent: int) -> None:
    """When memory runs out, a program has to go, not its parent or execd, or all is lost."""
    if os.getppid() != parent:
        return  # a program in Python that starts another
    try:
        score = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(score, DIES_FIRST)
        os.close(score)
    except OSError:
        pass  # then the kernel chooses by size alone, which mostly is right


if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(sys.argv[0]))  # noqa: PTH100, PTH120
    if sys.argv[1] == "setup":
        print(json.dumps(setup(here)))  # noqa: T201
    else:
        step(here, sys.argv[2])
