"""What to change on a host where jails do not start, or do not hold."""

from __future__ import annotations

import os
from pathlib import Path

OLDEST_KERNEL = (5, 8)
SET_IDS = 1 << 6 | 1 << 7
"""CAP_SETGID and CAP_SETUID."""


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
