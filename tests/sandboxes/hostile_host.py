"""The host while hostile programs run on it: looked at before, and compared afterwards."""

from __future__ import annotations

import os
import random
import re
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.helpers import eventually
from workers.sandboxes.nsjail.records import Record
from workers.sandboxes.processes import ProcessMark
from workers.sandboxes.protocol import Sandbox, SandboxLost, SandboxProvider
from workers.sandboxes.spec import Limits, SandboxSpec

SMALL = Limits(memory_mb=64, pids=16, disk_mb=8, inodes=100, file_mb=4, wall=20, open_files=64)


@dataclass
class Host:
    """What no program may touch, and what no sandbox may leave."""

    canary: Path
    """A file that every user of the host may write."""
    listener: socket.socket
    """On the host's loopback."""
    abstract: socket.socket
    """A Unix socket without a file, on the host."""
    mounts: set[str]
    descriptors: list[str]
    below: set[int]
    """Processes below this one before."""
    seen: list[ProcessMark] = field(default_factory=list)
    """Processes of sandboxes, seen from outside while they lived."""
    groups: list[Path] = field(default_factory=list)
    """Folders of their control groups."""

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def name(self) -> str:
        return "\0" + os.fsdecode(self.abstract.getsockname()[1:])

    def look(self, records: Path) -> None:
        """Note which processes and control groups there are now."""
        for pid in descendants(os.getpid()):
            if mark := ProcessMark.of(pid):
                self.seen.append(mark)
        for file in records.glob("*.json"):
            cgroup = Record.model_validate_json(file.read_bytes()).cgroup
            self.groups += cgroup.folders if cgroup else ()


@pytest.fixture
async def untouched_host(tmp_path: Path) -> AsyncIterator[Host]:
    """The host, which is the same after the test as before."""
    tmp_path.chmod(0o755)
    canary = tmp_path / "canary"
    canary.write_text("canary")
    canary.chmod(0o666)
    with _listening() as listener, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"\0fleet-test-{os.getpid()}")
        unix.listen()
        host = Host(canary, listener, unix, mounts(), open_ones(), set(descendants(os.getpid())))
        yield host
        for server in (listener, unix):
            server.setblocking(False)
            with pytest.raises(BlockingIOError):
                server.accept()

    assert canary.read_text() == "canary"
    assert mounts() == host.mounts
    assert open_ones() == host.descriptors
    assert not [folder for folder in host.groups if folder.exists()]

    def all_gone() -> bool:
        left = [mark for mark in host.seen if mark.pid not in host.below and mark.alive()]
        return not left and set(descendants(os.getpid())) <= host.below

    await eventually(all_gone, "every process of the sandboxes is gone", within=5)


def _listening() -> socket.socket:
    """Listen on a port that nobody else can be looking for: none of those given to whoever asks."""
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
    raise AssertionError("none of a hundred ports is free")


@pytest.fixture
async def small(
    provider: SandboxProvider, untouched_host: Host, records: Path
) -> AsyncIterator[Sandbox]:
    """A sandbox with tight limits; whatever was done in it, it and the next one must work."""
    async with await provider.start(SandboxSpec(limits=SMALL)) as sandbox:
        yield sandbox
        untouched_host.look(records)
        assert (await sandbox.run_python("print('fine')")).stdout == "fine\n"
        assert (await sandbox.exec("echo fine")).stdout == "fine\n"
    await works(provider)


async def works(provider: SandboxProvider) -> None:
    """A new sandbox is as good as the first."""
    async with await provider.start(SandboxSpec(limits=SMALL)) as another:
        assert (await another.run_python("print('fine')")).stdout == "fine\n"
        assert await another.list_dir() == []


async def usable_or_lost(sandbox: Sandbox) -> bool:
    """Say whether it is; what it must never be is something in between."""
    try:
        result = await sandbox.exec("echo fine")
    except SandboxLost:
        assert not await sandbox.is_alive()
        return False
    assert result.stdout == "fine\n", result
    return True


def by_cgroup(sandbox: Sandbox) -> bool:
    return "cgroup" in str(sandbox.enforced["memory"])


def mounts() -> set[str]:
    """Every mount of this process's namespace but those of container engines and other tests."""
    lines = Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    return {line for line in lines if not re.search("docker|containerd|netns|fleet-test", line)}


def open_ones() -> list[str]:
    """Descriptors of ours that a sandbox might leave open: files in memory, processes."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue  # the listing itself
        if "memfd:" in target or "pidfd" in target:
            found.append(target)
    return sorted(found)


def descendants(pid: int) -> list[int]:
    """Return the processes below one, however deep and in whatever namespace."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int(
                    (folder / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()[1]
                )
            except OSError:
                continue  # it ended meanwhile
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found
