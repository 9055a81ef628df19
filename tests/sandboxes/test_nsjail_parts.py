"""The pieces of the nsjail back-end, each by itself."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from common.failures import ConfigurationError
from common.settings import Settings
from workers.sandboxes.agent import source
from workers.sandboxes.agent_seam import ProgramReply
from workers.sandboxes.channel import Channel
from workers.sandboxes.nsjail import advice, cgroups, config
from workers.sandboxes.nsjail.cgroups import Cgroup
from workers.sandboxes.nsjail.records import Records
from workers.sandboxes.processes import ProcessMark
from workers.sandboxes.protocol import SandboxLost
from workers.sandboxes.registry import backend
from workers.sandboxes.spec import Limits


def frame(header: dict[str, object]) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "big") + text


def test_an_unknown_back_end_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"there are: .*nsjail"):
        backend(Settings(sandbox="docker-in-the-cloud"))


@pytest.mark.parametrize("entry", ["main", "once"])
def test_the_agent_is_python_3_9_and_imports_the_standard_library_only(
    entry: Literal["main", "once"],
) -> None:
    tree = ast.parse(source(entry), feature_version=(3, 9))
    imported = {
        alias.name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        str(node.module).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert not imported & {"common", "workers", "pydantic"}


def test_whatever_is_quoted_cannot_end_its_literal() -> None:
    hostile = 'a" } mount { src: "/" \\ \n\0é'
    quoted = config.quote(hostile)
    assert quoted.count('"') == 2
    assert ast.literal_eval("b" + quoted) == hostile.encode()
    assert ast.literal_eval("b" + config.quote(bytes(range(256)))) == bytes(range(256))


def test_limits_reach_the_configuration() -> None:
    limits = Limits(disk_mb=7, inodes=99, pids=5, ttl=12.5, file_mb=3, open_files=33, memory_mb=40)
    jail = config.JailConfig(
        limits=limits, outside_uid=4711, outside_gid=4712, interpreter=Path("/usr/bin/python3"),
        agent=b"", cgroup=False,
    )  # fmt: skip
    text = config.text(jail)
    for part in (
        'uidmap { inside_id: "1000" outside_id: "4711" count: 1 }',
        "size=7M,nr_inodes=99,mode=700",
        "rlimit_nproc: 6 rlimit_nproc_type: VALUE",
        "rlimit_fsize: 3 rlimit_fsize_type: VALUE",
        "rlimit_nofile: 33 rlimit_nofile_type: VALUE",
        "rlimit_as: 80 rlimit_as_type: VALUE",
        "time_limit: 604800",
        "rlimit_core_type: HARD",
        'dst: "/proc" fstype: "proc" options: "subset=pid" rw: false',
    ):
        assert part in text
    counted = config.text(jail.model_copy(update={"cgroup": True}))
    assert "rlimit_as_type: INF" in counted
    # Where the agent counts, it has to see everybody.
    assert 'options: "subset=pid,hidepid=2"' in counted
    # Memory of no process: only where a control group counts it.
    assert "memfd_create, memfd_secret" in text
    assert "memfd_create, memfd_secret" not in counted


def test_advice_names_the_setting_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "user/max_user_namespaces": "0",
        "kernel/apparmor_restrict_unprivileged_userns": "1",
    }
    monkeypatch.setattr(advice, "_setting", lambda name: settings.get(name, ""))
    assert "user.max_user_namespaces=" in advice.advice()
    assert "apparmor_restrict_unprivileged_userns=0" in advice.advice()


def test_a_version_2_group_is_limited_and_read(tmp_path: Path) -> None:
    """With plain files in place of the kernel's, as few hosts offer both versions."""
    group = cgroups.child(Cgroup(version=2, memory=tmp_path, pids=tmp_path), "fleet-1")
    assert group.folders == (tmp_path / "fleet-1",)
    assert group.joins == (tmp_path / "fleet-1" / "cgroup.procs",)
    group.create(Limits(memory_mb=100, pids=10))
    assert (group.memory / "memory.max").read_text() == str((100 + config.OVERHEAD_MB) << 20)
    assert (group.pids / "pids.max").read_text() == "12"
    (group.memory / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\n")
    (group.pids / "pids.events").write_text("max 5\n")
    assert (group.oom_kills(), group.pids_hits()) == (2, 5)


@pytest.mark.parametrize("ours", [True, False])
def test_a_version_1_group_counts_kills_only_where_it_reached_its_limit(
    tmp_path: Path, ours: bool
) -> None:
    memory, pids = tmp_path / "memory", tmp_path / "pids"
    memory.mkdir()
    pids.mkdir()
    group = cgroups.child(Cgroup(version=1, memory=memory, pids=pids), "fleet-1")
    group.create(Limits(memory_mb=100))
    limit = int((group.memory / "memory.limit_in_bytes").read_text())
    peak = limit - 40960 if ours else limit // 2
    (group.memory / "memory.max_usage_in_bytes").write_text(f"{peak}\n")
    (group.memory / "memory.oom_control").write_text("oom_kill_disable 0\noom_kill 2\n")
    assert group.oom_kills() == (2 if ours else 0), "or the host had no memory left"


def test_a_version_2_group_does_not_count_what_the_host_killed(tmp_path: Path) -> None:
    group = cgroups.child(Cgroup(version=2, memory=tmp_path, pids=tmp_path), "fleet-1")
    group.create(Limits())
    for events, kills in (("max 0\noom 0\noom_kill 2\n", 0), ("max 9\noom 1\noom_kill 2\n", 2)):
        (group.memory / "memory.events").write_text(events)
        assert group.oom_kills() == kills


@pytest.mark.parametrize(
    ("root", "own", "found"),
    [("/", "/a/b", "/sys/fs/cgroup/a/b"), ("/docker/x", "/docker/x/y", "/sys/fs/cgroup/y"),
     ("/docker/x", "/docker/x", "/sys/fs/cgroup")],
)  # fmt: skip
def test_our_own_group_is_found_in_containers_too(
    monkeypatch: pytest.MonkeyPatch, root: str, own: str, found: str
) -> None:
    line = f"30 23 0:26 {root} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
    monkeypatch.setattr(Path, "read_text", lambda *_: line)
    assert cgroups._mounted("cgroup2", "", {"": own}) == Path(found)


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen(["sleep", "60"])
    mark = ProcessMark.of(process.pid)
    assert mark is not None
    assert mark.alive()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{process.pid}").exists()
    assert not mark.alive()
    process.wait()
    assert ProcessMark.of(process.pid) is None


def test_every_record_claims_a_slot_of_its_own(tmp_path: Path) -> None:
    records = Records(tmp_path)
    slots = {records.claim(ProcessMark.own(), {}).slot for _ in range(50)}
    assert len(slots) == len(list(tmp_path.glob("*.json"))) == 50
    assert records.orphans() == []


def test_a_folder_of_records_that_is_somebody_elses_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.sandboxes.nsjail.records.os.geteuid", lambda: 4711)
    with pytest.raises(ConfigurationError, match="remove it"):
        Records(tmp_path)


@pytest.mark.parametrize(
    "answer",
    [b"\xff\xff\xff\xff", b"\0\0\0\1{", b"\0\0\0\2[]", frame({"id": 1}), frame({"raw": []}),
     frame({"id": 1, "raw": [1 << 40]}), frame({"id": 1, "raw": [-1]}),
     frame({"id": [], "raw": []}), frame({"id": 1, "raw": ["x"]}), b"\0\0",
     frame({"id": 1, "raw": [1, 1, 1]}) + b"abc", frame({"id": 1, "raw": [0] * 9})],
)  # fmt: skip
async def test_nonsense_from_the_agent_is_a_lost_sandbox(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(*await asyncio.open_connection(sock=ours), max_raw=1000)
    theirs.send(answer)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(SandboxLost):
        await channel.call("ping", patience=5)
    await channel.close()
    theirs.close()


@pytest.mark.parametrize(
    "absurd",
    [{"exit_code": 2**70}, {"exit_code": -1}, {"exit_code": 256}, {"duration": -1.0},
     {"duration": float("inf")}, {"duration": float("nan")}, {"duration": 1e300},
     {"cpu": -0.1}, {"cpu": float("nan")}, {"peak": -1}, {"peak": 2**70}],
    ids=str,
)  # fmt: skip
def test_absurd_numbers_from_the_agent_are_no_reply(absurd: dict[str, object]) -> None:
    sound = {"status": "error", "exit_code": 1, "truncated": [False, False], "duration": 0.1}
    sound |= {"cpu": 0.1, "peak": 4096}
    assert ProgramReply.model_validate(sound).exit_code == 1
    with pytest.raises(ValidationError, match=next(iter(absurd))):
        # As it arrives: JSON of Python knows numbers that no standard does.
        ProgramReply.model_validate(json.loads(json.dumps({**sound, **absurd})))


async def test_a_reply_nobody_waits_for_is_dropped() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(*await asyncio.open_connection(sock=ours), max_raw=1000)
    theirs.send(frame({"id": 7, "raw": []}) + frame({"id": 1, "raw": [3]}) + b"abc")
    assert (await channel.call("ping", patience=5)).raw == [b"abc"]
    await channel.close()
    theirs.close()


def test_the_agent_refuses_to_run_outside_of_a_jail() -> None:
    done = subprocess.run(
        ["/usr/bin/env", "python3", "-I", "-c", source()], input=b"", capture_output=True,
        timeout=20, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"PID 1 of a sandbox only" in done.stderr
