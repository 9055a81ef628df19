"""Whose a sandbox is, written on it as the server's metadata, and read back by the janitor."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from workers.sandboxes.processes import ProcessMark

OURS = {"fleet.system": "trajectory-fleet"}
"""On every sandbox of any fleet's."""
START = "fleet.start"
"""Unique for each attempt to start one: finds what a lost answer was about."""
HOST, PIDS, OWNER = "fleet.host", "fleet.pids", "fleet.owner"

LONGEST = 63
"""Of a value, and of a key: the server takes what Kubernetes takes for labels."""
SLACK = timedelta(minutes=10)
"""How long past its expiry the server may leave a sandbox of another host alive."""


def of_this_process() -> dict[str, str]:
    """Return what tells this process from all others, on any host, also after its death."""
    mark = ProcessMark.own()
    return {
        **OURS,
        HOST: fit(socket.gethostname()),
        PIDS: _pids(),
        OWNER: f"{mark.pid}-{mark.started}",
    }


def of_task(labels: Mapping[str, str]) -> dict[str, str]:
    """Return a spec's labels in a form the server accepts."""
    return {fit(f"fleet.task.{key}"): fit(value) for key, value in labels.items()}


def fit(text: str) -> str:
    """Return the text with everything a label may not hold replaced, and shortened."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:LONGEST]
    return plain.strip("-_.")


def orphaned(metadata: Mapping[str, str], expires_at: datetime | None, now: datetime) -> bool:
    """Say whether nobody will ever end this sandbox, nor wants it; ``now`` by the server's clock.

    Only owners whose process numbers mean something here can be looked at: same start of the same
    machine, same process namespace. All others renew the lives of their sandboxes as long as they
    live themselves, so one long past its expiry was forgotten, by them and by the server.
    """
    if not OURS.items() <= metadata.items():
        return False
    if metadata.get(PIDS) == _pids():
        try:
            pid, started = map(int, metadata.get(OWNER, "").split("-"))
        except ValueError:
            return False
        return not ProcessMark(pid=pid, started=started).alive()
    return expires_at is not None and expires_at + SLACK < now


def _pids() -> str:
    """Name the set of processes that ours belongs to; names of hosts are not unique enough."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{boot}-{Path('/proc/self/ns/pid').stat().st_ino}"
