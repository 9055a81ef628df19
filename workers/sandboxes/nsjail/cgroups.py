"""One control group per sandbox: limits on memory and processes that hold for all of it together.

We make the group ourselves instead of letting nsjail do it: then it can be read after the end,
says why a program was killed, and is removed even when nsjail was killed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path
from uuid import uuid4

from common.model import Contract
from workers.sandboxes.nsjail.config import OVERHEAD_MB
from workers.sandboxes.processes import ProcessMark
from workers.sandboxes.spec import Limits

TRIAL = "fleet-trial-"
"""What groups are called that only show whether groups can be made; their maker's mark follows."""
TRIAL_PATIENCE = 0.5
"""Seconds until such a group can be removed again."""
CHARGE = 64 * 4096
"""Bytes that the kernel charges at once, at most: so close to its limit a group cannot get more."""
SUPERVISORS = 2
"""Processes of a jail that are not the program's: nsjail and the agent."""


class Cgroup(Contract):
    """A group in one hierarchy (version 2) or two (version 1, one per controller)."""

    version: int
    memory: Path
    pids: Path

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((self.memory, self.pids)))

    @property
    def joins(self) -> tuple[Path, ...]:
        """The files to which a process writes 0 to move itself into the group."""
        # Version 1 moves a single thread through `tasks`, without the lock over all processes.
        name = "tasks" if self.version == 1 else "cgroup.procs"
        return tuple(folder / name for folder in self.folders)

    def create(self, limits: Limits) -> None:
        """Make the folders and set the limits. Raises `OSError`."""
        for folder in self.folders:
            folder.mkdir()
        size = str((limits.memory_mb + OVERHEAD_MB) << 20)
        if self.version == 1:
            (self.memory / "memory.limit_in_bytes").write_text(size)
            swap = self.memory / "memory.memsw.limit_in_bytes"
        else:
            (self.memory / "memory.max").write_text(size)
            swap, size = self.memory / "memory.swap.max", "0"
        if swap.exists():
            swap.write_text(size)
        (self.pids / "pids.max").write_text(str(limits.pids + SUPERVISORS))

    def oom_kills(self) -> int:
        """How many processes the kernel killed so far because this group reached its limit.

        It counts those it killed because the whole host had no memory left, too; not we.
        """
        if self.version == 1:
            peak, limit = (
                _number(self.memory / f"memory.{name}_in_bytes") for name in ("max_usage", "limit")
            )
            reached = peak > limit - CHARGE
            return _counter(self.memory / "memory.oom_control", "oom_kill") if reached else 0
        events = self.memory / "memory.events"
        return _counter(events, "oom_kill") if _counter(events, "oom") else 0

    def pids_hits(self) -> int:
        """How often a new process was refused so far."""
        return _counter(self.pids / "pids.events", "max")

    async def remove(self, patience: float = 0.5) -> bool:
        """Kill what is left inside and remove the folders; returns whether they are gone."""
        deadline = time.monotonic() + patience
        while True:
            gone = [_remove(folder) for folder in self.folders]
            if all(gone):
                return True
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.005)  # until the kernel has buried the last process


def find() -> Cgroup | None:
    """Return the group below which ours can be made, or None where this user may not.

    Version 1: below our own groups. Version 2: below our own or its parent, whichever hands
    memory and pids on to its children ("delegated").
    """
    own = ProcessMark.own()
    for candidate in _candidates():
        trial = child(candidate, f"{TRIAL}{own.pid}-{own.started}-{uuid4().hex[:8]}")
        try:
            trial.create(Limits())
            join = 'for file; do echo 0 >"$file" || exit 1; done'
            subprocess.run(
                ["/bin/sh", "-c", join, "sh", *trial.joins],
                check=True, timeout=5, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            continue
        finally:
            _remove_trial(trial)
        return candidate
    return None


def sweep() -> None:
    """Remove the trials of processes that were killed in the middle of one."""
    for folder in {folder for candidate in _candidates() for folder in candidate.folders}:
        for trial in folder.glob(f"{TRIAL}*"):
            pid, _, started = trial.name.removeprefix(TRIAL).rpartition("-")[0].partition("-")
            try:
                owner = ProcessMark(pid=int(pid), started=int(started))
            except ValueError:
                continue
            if not owner.alive():
                _remove(trial)


def _remove_trial(trial: Cgroup) -> None:
    deadline = time.monotonic() + TRIAL_PATIENCE
    while not all(_remove(folder) for folder in trial.folders) and time.monotonic() < deadline:
        time.sleep(0.001)  # until the kernel has buried the shell


def _candidates() -> list[Cgroup]:
    return [*_version_1(), *_version_2()]


def child(parent: Cgroup, name: str) -> Cgroup:
    return Cgroup(version=parent.version, memory=parent.memory / name, pids=parent.pids / name)


def _version_1() -> list[Cgroup]:
    own = _own_groups()
    memory, pids = (_mounted("cgroup", controller, own) for controller in ("memory", "pids"))
    return [Cgroup(version=1, memory=memory, pids=pids)] if memory and pids else []


def _version_2() -> list[Cgroup]:
    own = _mounted("cgroup2", "", _own_groups())
    found = []
    for folder in (own, own.parent) if own else ():
        handed_on = folder / "cgroup.subtree_control"
        if handed_on.exists() and {"memory", "pids"} <= set(handed_on.read_text().split()):
            found.append(Cgroup(version=2, memory=folder, pids=folder))
    return found


def _own_groups() -> dict[str, str]:
    """Return controller -> path of our group; version 2 has the empty name."""
    groups = {}
    for line in Path("/proc/self/cgroup").read_text("utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _mounted(kind: str, controller: str, own: dict[str, str]) -> Path | None:
    """Return the folder of our own group of a controller, where that hierarchy is mounted."""
    if controller not in own:
        return None
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        mount, _, filesystem = line.partition(" - ")
        root, point = mount.split()[3:5]
        fstype, _, options = filesystem.split(" ", 2)
        if fstype == kind and (not controller or controller in options.split(",")):
            # In a container the mount's root may be the container's group itself.
            path = own[controller]
            inside = path.removeprefix(root) if root != "/" else path
            return Path(point) / inside.lstrip("/")
    return None


def _number(file: Path) -> int:
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError):
        return 0  # removed already


def _counter(file: Path, name: str) -> int:
    try:
        for line in file.read_text("ascii").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except OSError:
        pass  # removed already
    return 0


def _remove(folder: Path) -> bool:
    """Remove one folder, or else kill who is in it."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        _kill(folder)
        return False
    return True


def _kill(folder: Path) -> None:
    try:
        pids = [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return
    for pid in pids:
        if pid <= 0:  # a process outside of our pid namespace; as a target, 0 would be ourselves
            continue
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
