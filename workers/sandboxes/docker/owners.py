"""Marks on containers that say whose they are, so that a reaper can end what the dead left.

Several workers, on several hosts, may share one Docker daemon. Whether a process lives can be told
on its own host only; elsewhere, a container counts as left behind when no life can be that long.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from common.model import Contract
from workers.sandboxes.processes import ProcessMark

NAME = "fleet-sandbox-"
"""Every container's name begins so; an image made of one has our marks, but not this."""
MARK = "trajectory-fleet."
HOST, PID, STARTED, EXPIRES = (f"{MARK}{key}" for key in ("host", "pid", "started", "expires"))
LAST_RESORT = 2 * 86_400.0
"""Seconds beyond its first ttl after which no container can live any more, however often its life
was prolonged, which no label can tell: it waits in a pool first, and a task has a day at most."""
SLACK = 3600.0
"""Seconds that the clocks of two hosts may differ, or an end may take."""
FORMAT = "\t".join(
    ("{{.ID}}", *(f'{{{{.Label "{key}"}}}}' for key in (HOST, PID, STARTED, EXPIRES)))
)
"""Of one line of `docker ps`."""
_KEY = re.compile(r"[^A-Za-z0-9_.-]")
_LONGEST = 256


class Owned(Contract):
    """One container with its marks."""

    id: str
    host: str
    owner: ProcessMark
    expires: float

    def orphan(self) -> bool:
        """Say whether nobody will end this container any more."""
        if self.host == host():
            return not self.owner.alive()
        return time.time() > self.expires + SLACK


@cache
def own() -> ProcessMark:
    """Return the mark of this process. Known once, it needs no descriptor any more."""
    return ProcessMark.own()


@cache
def host() -> str:
    """Return what differs wherever process ids mean something else: host, start, container."""
    start = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return f"{socket.gethostname()} {start} {os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116


def marks(ttl: float, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a new container of this process; ``labels`` are for people only."""
    for_people = {f"{MARK}spec.{_KEY.sub('_', key)[:64]}": text for key, text in labels.items()}
    ours = {
        HOST: host(),
        PID: str(own().pid),
        STARTED: str(own().started),
        EXPIRES: str(int(time.time() + ttl + LAST_RESORT)),
    }
    return {key: _plain(text) for key, text in (for_people | ours).items()}


def parse(listing: str) -> Iterator[Owned]:
    """Yield the containers of a listing in `FORMAT`; lines with broken marks are none of ours."""
    for line in listing.splitlines():
        try:
            container, where, pid, started, expires = line.split("\t")
            owner = ProcessMark(pid=int(pid), started=int(started))
            yield Owned(id=container, host=where, owner=owner, expires=float(expires))
        except ValueError:
            continue


def _plain(text: str) -> str:
    """Return text that fits on a line of a terminal; half characters would not even be passed."""
    return "".join(char if char.isprintable() else "?" for char in text[:_LONGEST])
