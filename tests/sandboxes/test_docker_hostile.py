"""The hostile suite over Docker containers, and what is to be seen in one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.sandboxes import hostile_kernel
from tests.sandboxes.docker_bed import provider as provider
from tests.sandboxes.hostile import *  # noqa: F403
from tests.sandboxes.hostile_host import SMALL
from workers.sandboxes.agent_sandbox import ENV
from workers.sandboxes.docker import options, probe
from workers.sandboxes.docker.provider import DockerProvider
from workers.sandboxes.protocol import Sandbox
from workers.sandboxes.python_packages import THREADS
from workers.sandboxes.spec import SandboxSpec

pytestmark = pytest.mark.docker

OPEN_IN_CONTAINERS = {"/proc/self/oom_score_adj", "/proc/kallsyms"}
"""Docker mounts the whole of /proc. A program may change its own score, as any process may, within
what the kernel allows; the list of the kernel's symbols has no addresses (see the probe)."""


@pytest.fixture(autouse=True)
def what_docker_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROTECTED", "SECRET"):
        closed = [path for path in getattr(hostile_kernel, name) if path not in OPEN_IN_CONTAINERS]
        monkeypatch.setattr(hostile_kernel, name, tuple(closed))


async def test_the_probe_finds_the_isolation_it_promises(provider: DockerProvider) -> None:
    report = await provider.probe()
    assert report.broken == ()
    assert report.enforced["network"] == "namespace: own loopback only"
    assert "image" not in report.versions, "a task may have one of its own"
    assert str(report.enforced["image"]).startswith("sha256:")
    assert all(report.versions[name] for name in ("docker", "docker command", "kernel"))
    assert report.versions["cgroup"][:2] in ("v1", "v2")


LOOSE = {
    "no network namespace": (("--network", "none"), ("--network", "host"), "network"),
    "no seccomp": ((f"seccomp={options.SECCOMP}",), ("seccomp=unconfined",), "AF_VSOCK"),
    "new privileges": (("no-new-privileges",), ("no-new-privileges=false",), "no_new_privs"),
    "a writable image": (("--read-only",), ("--read-only=false",), "image's files are writable"),
    "the host's files": (("--read-only",), ("--read-only", "-v", "/etc:/mnt:ro"), "/mnt is"),
    "a device": (("--read-only",), ("--read-only", "--device", "/dev/loop-control"), "devices"),
    "its name": (("--read-only",), ("--read-only", "--hostname", "other"), "name (other)"),
    "more disk": (("/work:size=8m",), ("/work:size=80m",), "MiB in /work"),
    "many descriptors": (("nofile=40:40",), ("nofile=400:400",), "open files"),
    "large files": (("fsize=4194304:4194304",), ("fsize=41943040:41943040",), "MiB in one file"),
    "more memory": (("--memory", "72m", "--memory-swap", "72m"), (), "where 48 are allowed"),
    "more processes": (("--pids-limit", "17"), (), "processes"),
    "its messages": (("--ipc", "private"), ("--ipc", "host"), "ipc namespace"),
    "its groups": (("--cgroupns", "private"), ("--cgroupns", "host"), "cgroup namespace"),
    "locked memory": (("memlock=65536:65536",), ("memlock=8388608:8388608",), "memlock"),
    "message queues": (("msgqueue=65536:65536",), ("msgqueue=819200:819200",), "msgqueue"),
    "processor time": (("cpu=300:300",), ("cpu=3000:3000",), "processor time"),
    "no place in /tmp": (("/tmp:size=8m",), ("/srv:size=8m",), "cannot write to ['/tmp']"),
    "bare /proc": (("--read-only",), ("--read-only", "--security-opt", "systempaths=unconfined"),
                   "cover up"),
    "another user": (("--user", "1000:1000"), ("--user", "0:0"), "programs run as [0, 0"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOOSE)
async def test_a_container_that_does_not_hold_is_found_out(
    what: str, provider: DockerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real containers, each loosened in one way."""
    old, new, words = LOOSE[what]
    whole = options.run

    def loosened(*args: Any) -> Iterator[str]:
        text = "\0".join(whole(*args))
        assert "\0".join(old) in text
        yield from text.replace("\0".join(old), "\0".join(new)).replace("\0\0", "\0").split("\0")

    monkeypatch.setattr(options, "run", loosened)
    report = await provider.probe()
    assert any(words in promise for promise in report.broken), report.broken


async def test_pairs_of_sockets_are_local_ones_only(small: Sandbox) -> None:
    """Others reach code of the kernel that no program here needs."""
    result = await small.run_python(
        "import socket\n"
        "ours, theirs = socket.socketpair()\n"
        "for family in (2, 10, 16, 30, 40):\n"
        "    try: socket.socketpair(family, socket.SOCK_STREAM)\n"
        "    except OSError as error: print(error.errno)\n"
    )
    assert result.stdout == "1\n" * 5, result


async def test_nothing_of_the_host_is_to_be_seen(
    small: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLEET_TEST_SECRET", "secret")
    result = await small.run_python(
        "import os, json\n"
        "print(json.dumps({\n"
        "  'dev': sorted(os.listdir('/dev')), 'environ': sorted(os.environ),\n"
        "  'pids': [n for n in os.listdir('/proc') if n.isdigit()],\n"
        "  'fds': sorted(os.listdir('/proc/self/fd')), 'hostname': os.uname().nodename,\n"
        "  'uid': [os.getuid(), os.geteuid(), os.getgid()], 'groups': os.getgroups(),\n"
        "  'init': open('/proc/1/cmdline').read().split('\\0')[0]}))"
    )
    seen = json.loads(result.stdout)
    assert set(seen["dev"]) <= probe.DEVICES
    assert set(seen["environ"]) == set(ENV) | set(THREADS)
    assert seen["pids"] == ["1", seen["pids"][-1]]
    assert seen["fds"] == ["0", "1", "2", "3"]  # 3 is the listing itself
    assert seen["hostname"] == "sandbox"
    assert seen["uid"] == [1000, 1000, 1000]
    assert seen["groups"] in ([], [1000])
    assert seen["init"] == "python3"
    unreadable = await small.exec(
        "cat /proc/kcore /proc/keys /proc/timer_list /etc/shadow | wc -c;"
        "echo b >/proc/sysrq-trigger; echo x >/proc/sys/kernel/core_pattern;"
        "ls /sys/firmware /proc/acpi; mount; dmesg"
    )
    assert unreadable.stdout.startswith("0\n"), unreadable


async def test_a_container_killed_for_memory_with_its_agent_is_told_as_such(
    provider: DockerProvider,
) -> None:
    """Many small programs: the kernel may well take the agent, which is larger than each."""
    async with await provider.start(
        SandboxSpec(limits=SMALL.model_copy(update={"pids": 200}))
    ) as sandbox:
        result = await sandbox.run_python(
            "import os, time\n"
            "for _ in range(150):\n"
            "    if os.fork() == 0:\n"
            "        keep = bytearray(1 << 20)\n"
            "        for n in range(0, len(keep), 4096): keep[n] = 1\n"
            "        time.sleep(60)\n"
            "time.sleep(60)\n",
            timeout=10,
        )
        assert result.status == "oom", result


def _allowed(profile: str) -> set[str]:
    """Return the system calls of a profile, with what it asks of their arguments."""
    rules = json.loads(profile)["syscalls"]
    return {
        f"{name} {json.dumps(rule.get('args'))}"
        for rule in rules
        if rule["action"] == "SCMP_ACT_ALLOW"
        for name in rule["names"]
    }


def test_the_profiles_of_jails_containers_and_workers_agree() -> None:
    """What a jail may not call, a container may not; a worker that makes jails needs a little."""
    folder = files("workers.sandboxes")
    ours = _allowed(folder.joinpath("docker/seccomp.json").read_text("utf-8"))
    plain = {call.partition(" ")[0] for call in ours}
    for policy in ("nsjail/seccomp.kafel", "nsjail/seccomp.x86_64.kafel"):
        text = re.sub(r"/\*.*?\*/", "", folder.joinpath(policy).read_text("utf-8"), flags=re.S)
        denied = re.findall(r"\w+", re.search(r"ERRNO\(1\) \{(.*?)\}", text, re.S)[1])  # type: ignore[index]
        assert len(denied) >= 3
        assert plain & set(denied) == set()
    assert plain >= {"clone", "socket", "execve", "pidfd_open", "memfd_create"}
    compose = Path(__file__).parents[2] / "compose/nsjail-seccomp.json"
    worker = _allowed(compose.read_text("utf-8"))
    assert {call.partition(" ")[0] for call in worker - ours} == {
        "clone", "mount", "pivot_root", "sethostname", "umount2", "unshare",
    }  # fmt: skip
    assert {call.partition(" ")[0] for call in ours - worker} == {"clone"}, "with its flags"
