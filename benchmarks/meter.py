"""What a process and the server used: CPU, memory, commands."""

from __future__ import annotations

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path

import redis

from common.queue.library import library

_TICK = os.sysconf("SC_CLK_TCK")
_SCRIPTED = re.compile(r"redis\.p?call\('(\w+)'")


def own_cpu() -> float:
    """Return the CPU seconds of this process so far, all its threads, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def own_peak() -> float:
    """Return the largest resident size of this process so far, MB."""
    return peak(os.getpid())


def peak(pid: int) -> float:
    """Return the largest resident size of a process so far, MB. 0 when it is gone."""
    return _status(pid, "VmHWM:")


def resident(pid: int) -> float:
    """Return the resident size of a process, MB. 0 when it is gone."""
    return _status(pid, "VmRSS:")


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process so far, without its children. 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for parent in found:
        try:
            text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
        except OSError:
            continue
        found += [int(child) for child in text.split()]
    return found


def _status(pid: int, name: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(name)), 0.0)


@dataclass(frozen=True)
class ServerUse:
    """What the server did between two looks."""

    cpu: float
    """Seconds of all its threads, user and system."""
    commands: int
    """All commands executed, those inside scripts included."""
    calls: int
    """Commands that clients sent."""
    by_command: dict[str, int]


class ServerMeter:
    """Looks at the server from a connection of its own; what it asks itself is taken off."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url, socket_timeout=30.0)
        self._scripted = {name.lower() for name in _SCRIPTED.findall(library()[1])}
        self.restart()

    def restart(self) -> None:
        self._cpu, self._stats = self._look()

    def flush(self) -> None:
        """Forget everything, the Lua library too, and give memory back."""
        self._client.flushall()
        self._client.function_flush()

    def used_memory(self) -> int:
        """Return the bytes the server's data takes."""
        return int(self._client.info("memory")["used_memory"])

    def use(self) -> ServerUse:
        """Return what happened since `restart`."""
        cpu, stats = self._look()
        changed = {
            name: calls - self._stats.get(name, 0)
            for name, calls in stats.items()
            if calls > self._stats.get(name, 0) and not name.startswith(("info", "config"))
        }
        # The server does not tell a client's command from a script's. Our clients send hardly any
        # of those our scripts use, so what is left is what clients sent.
        sent = sum(n for name, n in changed.items() if name.split("|")[0] not in self._scripted)
        return ServerUse(cpu - self._cpu, sum(changed.values()), sent, changed)

    def close(self) -> None:
        self._client.close()

    def _look(self) -> tuple[float, dict[str, int]]:
        cpu = self._client.info("cpu")
        used = float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])
        stats = self._client.info("commandstats")
        return used, {n.removeprefix("cmdstat_"): int(row["calls"]) for n, row in stats.items()}
