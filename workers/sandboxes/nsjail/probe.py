"""What a jail must look like from inside, asked in a real one before the first task."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.failures import ConfigurationError
from workers.sandboxes.agent_sandbox import ENV
from workers.sandboxes.protocol import Sandbox
from workers.sandboxes.spec import Limits

LIMITS = Limits(disk_mb=8, inodes=64, ttl=60, wall=20)
"""Of the jail that is looked at; odd on purpose, so that they are not a host's own."""

OLDEST_KERNEL = (5, 8)
SET_IDS = 1 << 6 | 1 << 7
"""CAP_SETGID and CAP_SETUID."""

LOOK = """
import json, os, socket
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
work = os.statvfs("/work")
def refused(attempt):
    try:
        attempt()
    except OSError:
        return True
print(json.dumps({
    "outside_uid": int(open("/proc/self/uid_map").read().split()[1]),
    "capabilities": sorted({v.strip() for k, v in status.items() if k.startswith("Cap")}),
    "no_new_privs": status["NoNewPrivs"].strip(),
    "seccomp": status["Seccomp"].strip(),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "unreachable": refused(lambda: socket.socket(2, 2).connect(("192.0.2.1", 9))),
    "host_files": [path for path in HOST_FILES if os.path.lexists(path)],
    "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "agent_hidden": refused(lambda: open("/proc/1/environ").read()),
    "vsock_refused": refused(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "read_only": refused(lambda: open("/usr/fleet-probe", "w")),
    "disk": work.f_blocks * work.f_frsize,
    "inodes": work.f_files,
    "environment": sorted(os.environ),
}))
"""
EVERYWHERE = {
    "lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0",
    "sit0", "ip6tnl0", "ip6gre0", "ip6_vti0",
}  # fmt: skip
"""Interfaces that some kernels put into every new network namespace; they lead nowhere."""
HOST_FILES = ("/etc/shadow", "/root", "/home", "/var", "/sys", "/proc/sys", "/proc/kcore")


async def check(sandbox: Sandbox) -> None:
    """Look around in a jail. Raises `ConfigurationError` naming every promise that is not kept."""
    result = await sandbox.run_python(f"HOST_FILES = {HOST_FILES!r}\n{LOOK}")
    if result.status != "ok":
        raise ConfigurationError(
            f"a sandbox starts but cannot run a program ({result.status}): {result.stderr[-500:]}"
        )
    broken = list(violations(json.loads(result.stdout)))
    if broken:
        raise ConfigurationError(f"sandboxes are not isolated: {'; '.join(broken)}; {advice()}")


def violations(seen: dict[str, Any]) -> Iterator[str]:
    """Yield each broken promise, in words for an operator."""
    if seen["outside_uid"] == 0:
        yield "programs are root outside of their jail"
    if seen["capabilities"] != ["0" * 16]:
        yield f"programs keep capabilities {seen['capabilities']}"
    if seen["no_new_privs"] != "1":
        yield "no_new_privs is not set, so setuid programs work"
    if seen["seccomp"] != "2" or not seen["vsock_refused"]:
        yield "the seccomp filter is not active"
    interfaces = set(seen["interfaces"]) - EVERYWHERE
    if interfaces or not seen["unreachable"]:
        yield f"programs see the network (interfaces {sorted(interfaces)})"
    if seen["host_files"]:
        yield f"programs see files of the host: {seen['host_files']}"
    if not seen["pids"] or max(seen["pids"]) > 100:
        yield "programs see processes of the host"
    if not seen["agent_hidden"]:
        yield "programs can look into the agent"
    if not seen["read_only"]:
        yield "the system folders are writable"
    if seen["disk"] != LIMITS.disk_mb << 20 or seen["inodes"] != LIMITS.inodes:
        yield f"/work is {seen['disk']} bytes with {seen['inodes']} inodes, not as limited"
    if foreign := set(seen["environment"]) - set(ENV):
        yield f"programs see the worker's environment: {sorted(foreign)}"


def advice() -> str:
    """Say what to change on this host so that jails can start, as far as it can be seen."""
    found = []
    release = os.uname().release
    if tuple(int(part) for part in release.split("-")[0].split(".")[:2]) < OLDEST_KERNEL:
        found.append(f"Linux {release} is too old: 5.8 is needed for a private /proc")
    if os.geteuid() == 0 and not _may_set_ids():
        found.append("root without CAP_SETUID and CAP_SETGID: run the worker as a normal user")
    if _setting("user/max_user_namespaces") == "0":
        found.append("user namespaces are off: sysctl -w user.max_user_namespaces=15000")
    if _setting("kernel/unprivileged_userns_clone") == "0" and os.geteuid() != 0:
        found.append(
            "only root may make user namespaces: sysctl -w kernel.unprivileged_userns_clone=1"
        )
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        found.append(
            "AppArmor takes the rights out of user namespaces: "
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
        )
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        found.append(
            "this is a container, which needs security_opt: "
            "seccomp=<a profile that allows user namespaces and mount> and "
            "systempaths=unconfined (no privileges; see the compose file)"
        )
    return "; ".join(found) or "nothing on this host explains it; `fleet doctor` shows more"


def _may_set_ids() -> bool:
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16) & SET_IDS == SET_IDS
    return False


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text("ascii").strip()
    except OSError:
        return ""
