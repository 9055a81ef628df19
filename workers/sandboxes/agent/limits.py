"""What is known inside about limits: memory in use, and what a control group counted."""

from __future__ import annotations

import ctypes
import os

LIBC = ctypes.CDLL(None)
RLIMIT_CORE = 4
PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 36, 38

# Containers see their own control group here, version 1 or 2; jails see none.
OOM_KILLS = ("/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory.events")
PIDS_HITS = ("/sys/fs/cgroup/pids/pids.events", "/sys/fs/cgroup/pids.events")


def prctl(option: int, value: int) -> None:
    """Set something of this process. A kernel that refuses leaves nothing to rely on."""
    if LIBC.prctl(option, value, 0, 0, 0) != 0:
        os._exit(5)


def no_core_dumps() -> None:
    """Let no crash reach a handler of the host, which would run there as root.

    Where core_pattern is a pipe the kernel ignores a limit of 0, but with exactly 1 byte it does
    nothing (fs/coredump.c); and a file of 1 byte is none. Where somebody has set 0 for good, that
    is all there can be.
    """
    limit = (ctypes.c_ulong * 2)(1, 1)
    if LIBC.setrlimit(RLIMIT_CORE, limit) != 0:
        LIBC.getrlimit(RLIMIT_CORE, limit)
        if list(limit) != [0, 0]:
            os._exit(5)


def counted() -> tuple[int, int]:
    """Return (processes killed for memory, processes refused) of this container, if it counts."""
    return _counter(OOM_KILLS, b"oom_kill"), _counter(PIDS_HITS, b"max")


def _counter(candidates: tuple[str, ...], name: bytes) -> int:
    for path in candidates:
        try:
            with open(path, "rb") as lines:  # noqa: PTH123 - pathlib costs milliseconds of start
                for line in lines:
                    key, _, value = line.partition(b" ")
                    if key == name:
                        return int(value)
        except (OSError, ValueError):
            continue
    return 0


def memory_in_use(exact: bool) -> int:
    """Bytes of all programs' memory that no file holds; ``exact`` shares out what several map.

    Memory that is mapped by nobody (memfd, System V) is not to be seen from here: where this is
    what counts, no program can have any.
    """
    total = 0
    for pid in os.listdir("/proc"):  # noqa: PTH208
        if not pid.isdigit() or pid == "1":
            continue
        try:
            if exact:
                total += _sum(f"/proc/{pid}/smaps_rollup", (b"Pss_Anon:", b"Pss_Shmem:"))
                continue
        except PermissionError:
            pass  # it closed itself to others: then what it shares counts in full
        except OSError:
            continue  # it ended meanwhile
        try:
            total += _sum(f"/proc/{pid}/status", (b"RssAnon:", b"RssShmem:"))
        except OSError:
            continue
    return total


def _sum(path: str, names: tuple[bytes, ...]) -> int:
    with open(path, "rb") as lines:  # noqa: PTH123
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(names))
