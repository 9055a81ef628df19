"""What only a container can get wrong: mounts from its host, an image's folders left writable."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from common.failures import ConfigurationError
from workers.sandboxes.docker.options import INSIDE_ID
from workers.sandboxes.protocol import Sandbox

LOOK = """
import json, os, socket, tempfile
mounts = []
for line in open("/proc/self/mountinfo"):
    place, _, source = line.partition(" - ")
    fields = place.split()
    mounts.append((fields[4], source.split()[0], fields[5].split(",")))
def writable(folder):
    try:
        with tempfile.NamedTemporaryFile(dir=folder):
            return True
    except OSError:
        return False
folders = [place for place, _, _ in mounts if os.path.isdir(place)]
folders += ["/" + name for name in os.listdir("/") if os.path.isdir("/" + name)]
def addresses():
    try:
        with open("/proc/kallsyms") as symbols:
            return any(line.split()[0].strip("0") for _, line in zip(range(1000), symbols))
    except OSError:
        return False
print(json.dumps({
    "addresses": addresses(),
    "mounts": mounts,
    "writable": sorted(set(folder for folder in folders if writable(folder))),
    "ids": [*os.getresuid(), *os.getresgid()],
    "hostname": socket.gethostname(),
    "devices": sorted(os.listdir("/dev")),
}))
"""
WRITABLE = {"/work", "/tmp", "/dev/shm", "/dev/mqueue"}
KERNEL = {"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}
"""File systems that hold nothing of a disk."""
FROM_DOCKER = {"/etc/resolv.conf", "/etc/hostname", "/etc/hosts"}
"""Written by Docker for each container, and mounted from its own folder."""
DEVICES = {
    "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
    "stdout", "tty", "urandom", "zero",
}  # fmt: skip


async def look(sandbox: Sandbox) -> tuple[str, ...]:
    """Return what does not hold in a container. Raises `ConfigurationError` if none can look."""
    result = await sandbox.run_python(LOOK)
    try:
        return tuple(violations(json.loads(result.stdout)))
    except ValueError:
        raise ConfigurationError(
            f"a container starts but cannot run a program ({result.status}): {result.stderr[-500:]}"
        ) from None


def violations(seen: dict[str, Any]) -> Iterator[str]:
    """Yield each broken promise, in words for an operator."""
    for place, kind, options in seen["mounts"]:
        if place == "/" and "ro" not in options:
            yield "the image's files are writable"
        if place != "/" and kind not in KERNEL and place not in FROM_DOCKER:
            yield f"{place} is mounted from the host ({kind})"
    if foreign := set(seen["writable"]) - WRITABLE:
        yield f"programs can write to {sorted(foreign)}, where no limit holds"
    if set(seen["ids"]) != {INSIDE_ID}:
        yield f"programs run as {seen['ids']}, not as {INSIDE_ID}"
    if seen["hostname"] != "sandbox":
        yield f"programs see the host's name ({seen['hostname']})"
    if seen["addresses"]:
        yield "programs see the kernel's addresses: sysctl -w kernel.kptr_restrict=1"
    if foreign := set(seen["devices"]) - DEVICES:
        yield f"programs see devices of the host: {sorted(foreign)}"
