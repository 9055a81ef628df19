"""Kill the owners of sandboxes at any instant: nothing of any sandbox stays on the host."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.chaos.storm import chosen_seed
from tests.helpers import eventually
from tests.sandboxes.hostile_host import descendants, mounts, open_ones
from workers.sandboxes.nsjail import cgroups
from workers.sandboxes.nsjail.cgroups import Cgroup
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.nsjail.records import Record
from workers.sandboxes.processes import ProcessMark

REPOSITORY = Path(__file__).parents[2]
KEPT = 3
"""Sandboxes of an owner that survives."""
PR_SET_CHILD_SUBREAPER = 36
JOIN = 'for file; do shift; [ "$file" = -- ] && break; echo 0 >"$file"; done; exec "$@"'


@dataclass(frozen=True)
class Size:
    sessions: int
    kills: int
    owners: int = 2
    longest: float = 1.0
    """Seconds between two kills, once the victim has sandboxes."""


SHORT = Size(sessions=100, kills=10)
LONG = Size(sessions=1000, kills=100)


@contextmanager
def nest() -> Iterator[Cgroup | None]:
    """A control group of our own, below which all others of this test are made, where we may."""
    parent = cgroups.find()
    if parent is None or parent.version == 2:  # a parent of version 2 cannot be handed on so simply
        yield None
        return
    group = cgroups.child(parent, f"fleet-chaos-{os.getpid()}")
    for folder in group.folders:
        folder.mkdir()
    try:
        yield group
    finally:
        for folder in group.folders:
            folder.rmdir()


@contextmanager
def foster_parent() -> Iterator[None]:
    """Become the parent of whatever loses its own below us, so that nothing gets out of sight."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Crowd:
    """The owners, of which one is killed after the other."""

    def __init__(self, folder: Path, group: Cgroup | None) -> None:
        self.records, self.log, self.tmp = folder / "jails", folder / "log", folder / "tmp"
        self.tmp.mkdir()
        self.log.touch()
        joins = [str(file) for file in group.joins] if group else []
        self._argv = ["/bin/sh", "-c", JOIN, "sh", *joins, "--", sys.executable, "-m",
                      "tests.chaos.jails", str(self.records), str(self.log)]  # fmt: skip

    def start(self, *more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._argv, *more], cwd=REPOSITORY, env={**os.environ, "TMPDIR": str(self.tmp)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, text=True,
        )  # fmt: skip

    def closed(self) -> int:
        return self.log.read_text().count("\n")

    def noted(self) -> list[Record]:
        found = []
        for file in self.records.glob("*.json"):
            try:
                found.append(Record.model_validate_json(file.read_bytes()))
            except FileNotFoundError:
                continue
        return found

    def owned(self, owner: ProcessMark) -> list[Record]:
        return [record for record in self.noted() if record.owner == owner]

    def owns_some(self, owner: ProcessMark) -> bool:
        return bool(self.owned(owner))


def ask(owner: subprocess.Popen[str], question: str = "") -> str:
    assert owner.stdin is not None and owner.stdout is not None
    if question:
        owner.stdin.write(question + "\n")
        owner.stdin.flush()
    return owner.stdout.readline().strip()


def end(owner: subprocess.Popen[str], *, kill: bool) -> int:
    assert owner.stdin is not None and owner.stdout is not None
    if kill:
        owner.kill()
    owner.stdin.close()
    owner.stdout.close()
    return owner.wait(20)


async def storm(crowd: Crowd, size: Size, rng: random.Random) -> dict[str, int]:
    """Kill owners until there were enough kills and sessions; returns what was seen."""
    owners = [crowd.start() for _ in range(size.owners)]
    seen = {"kills": 0, "while starting": 0, "left by kills": 0, "sessions": 0}
    deadline = time.monotonic() + 60 + size.kills * 5
    try:
        while seen["kills"] < size.kills or seen["sessions"] < size.sessions:
            assert time.monotonic() < deadline, seen
            victim = rng.randrange(len(owners))
            mark = ProcessMark.of(owners[victim].pid)
            assert mark is not None, "an owner ended by itself"
            if rng.random() < 0.8:  # else it may still be looking at its host
                await eventually(partial(crowd.owns_some, mark), "it has sandboxes", within=60)
            await asyncio.sleep(rng.uniform(0.01, size.longest))
            end(owners[victim], kill=True)
            left = crowd.owned(mark)
            seen["kills"] += 1
            seen["left by kills"] += len(left)
            seen["while starting"] += sum(record.jail is None for record in left)
            seen["sessions"] = crowd.closed() + seen["left by kills"]
            owners[victim] = crowd.start()
    finally:
        for owner in owners:
            end(owner, kill=True)
    return seen


def bury(known: set[int]) -> None:
    """Take leave of the dead that became ours."""
    for pid in descendants(os.getpid()):
        if pid not in known and ProcessMark.of(pid) is None:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue  # somebody else's


async def nothing_stays(folder: Path, size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(chosen_seed())
    before = mounts(), open_ones(), set(descendants(os.getpid()))
    common = {path.name for path in Path(tempfile.gettempdir()).glob("nsjail.*")}
    with foster_parent(), nest() as group:
        crowd = Crowd(folder, group)
        survivor = crowd.start("--keep", str(KEPT))
        assert await asyncio.to_thread(ask, survivor) == "ready"
        seen = await storm(crowd, size, rng)
        print(f"sandboxes: {seen}")
        assert seen["left by kills"] > size.kills / 2, "most were killed while idle"

        def all_dead() -> bool:
            bury(before[2] | {survivor.pid})
            ours = {*before[2], survivor.pid, *descendants(survivor.pid)}
            return set(descendants(os.getpid())) <= ours

        await eventually(all_dead, "no process is left of what the dead owned", within=10)
        monkeypatch.setattr("workers.sandboxes.nsjail.records.STALE_DRAFT", 0)
        reaper = NsjailProvider(records=crowd.records)
        if group:  # trials of the dead lie where the dead were
            monkeypatch.setattr(cgroups, "_candidates", lambda: [group])
        reaped = await reaper.reap()
        assert await reaper.reap() == 0
        print(f"sandboxes: the last reaper removed {reaped}")

        # What the survivor owns is well, and all there is.
        assert await asyncio.to_thread(ask, survivor, "well?") == str(KEPT)
        kept = crowd.noted()
        assert len(kept) == len(list(crowd.records.iterdir())) == KEPT
        assert {record.owner.pid for record in kept} == {survivor.pid}
        folders = {path for record in kept if record.cgroup for path in record.cgroup.folders}
        assert inside(group) == folders if group else True
        assert list(crowd.tmp.iterdir()) == []

        assert end(survivor, kill=False) == 0
        assert inside(group) == set()
        assert list(crowd.records.iterdir()) == []
        assert set(descendants(os.getpid())) <= before[2]
    assert (mounts(), open_ones()) == before[:2]
    # nsjail's mount points, one pair for each user that ever started it.
    new = {path.name for path in Path(tempfile.gettempdir()).glob("nsjail.*")} - common
    assert new <= {f"nsjail.{os.geteuid()}.root", f"nsjail.{os.geteuid()}.tmp"}


def inside(group: Cgroup | None) -> set[Path]:
    folders = group.folders if group else ()
    return {path for folder in folders for path in folder.iterdir() if path.is_dir()}


async def test_100_sessions_and_10_killed_owners_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nothing_stays(tmp_path, SHORT, monkeypatch)


@pytest.mark.chaos
async def test_1000_sessions_and_100_killed_owners_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await nothing_stays(tmp_path, LONG, monkeypatch)
