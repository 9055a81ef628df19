"""What only a container can get wrong: mounts from its host, namespaces that it shares with it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.failures import ConfigurationError
from workers.sandboxes import probe
from workers.sandboxes.docker import options
from workers.sandboxes.docker.options import INSIDE_ID
from workers.sandboxes.protocol import Sandbox

# Run in the root folder: where programs are another user than promised, they cannot use their own.
LOOK = """
import json, os, resource, socket, tempfile
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
def boot():
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return None  # no kernel of ours, as under gVisor
print(json.dumps({
    "addresses": addresses(),
    "boot": boot(),
    "mounts": mounts,
    "namespaces": {name: os.stat("/proc/self/ns/" + name).st_ino for name in NAMESPACES
                   if os.path.exists("/proc/self/ns/" + name)},
    "rlimits": {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name.upper()))[1]
                for name in RLIMITS if hasattr(resource, "RLIMIT_" + name.upper())},
    "unmasked": [path for path in MASKED if os.path.exists(path)
                 and path not in [place for place, _, _ in mounts]],
    "writable": sorted(set(folder for folder in folders if writable(folder))),
    "ids": [*os.getresuid(), *os.getresgid()],
    "hostname": socket.gethostname(),
    "devices": sorted(os.listdir("/dev")),
}))
"""
WRITABLE = {"/work", "/tmp", "/dev/shm", "/dev/mqueue"}
NEEDED = {"/work", "/tmp", "/dev/shm"}
KERNEL = {"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}
"""File systems that hold nothing of a disk."""
FROM_DOCKER = {"/etc/resolv.conf", "/etc/hostname", "/etc/hosts"}
"""Written by Docker for each container, and mounted from its own folder."""
DEVICES = {
    "core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
    "stdout", "tty", "urandom", "zero",
}  # fmt: skip
MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/scsi", "/proc/timer_list",
          "/sys/firmware")  # fmt: skip
"""What every version of Docker covers up, where the kernel has it."""
FIRST = {"ipc": 0xEFFFFFFF, "uts": 0xEFFFFFFE, "pid": 0xEFFFFFFC, "cgroup": 0xEFFFFFFB}
"""The inodes of a machine's first namespaces (include/linux/proc_ns.h)."""
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
RLIMITS = {"memlock": "memory", "msgqueue": "memory", "rtprio": "cpu"}
"""Those that nothing else shows, each with the promise it belongs to."""


async def broken_promises(sandbox: Sandbox) -> tuple[str, ...]:
    """Return what does not hold in a container. Raises `ConfigurationError` if none can look."""
    names = f"NAMESPACES, RLIMITS, MASKED = {NAMESPACES!r}, {list(RLIMITS)!r}, {MASKED!r}\n"
    result = await sandbox.exec(["python3", "-c", names + LOOK], cwd="/")
    try:
        broken = list(violations(json.loads(result.stdout), _own()))
    except ValueError:
        raise ConfigurationError(
            f"a container starts but cannot run a program ({result.status}): {result.stderr[-500:]}"
        ) from None
    try:
        broken += await probe.broken_promises(sandbox)
    except ConfigurationError as error:
        if not broken:
            raise
        broken.append(str(error))  # most likely for one of those reasons
    return tuple(broken)


def violations(seen: dict[str, Any], own: Mapping[str, int]) -> Iterator[str]:
    """Yield each broken promise, in words for an operator; ``own``: see `_own`."""
    yield from _mounts(seen)
    if set(seen["ids"]) != {INSIDE_ID}:
        yield f"user: programs run as {seen['ids']}, not as {INSIDE_ID}"
    if seen["hostname"] != "sandbox":
        yield f"files: programs see the host's name ({seen['hostname']})"
    if seen["addresses"]:
        yield "files: programs see the kernel's addresses: sysctl -w kernel.kptr_restrict=1"
    if foreign := set(seen["devices"]) - DEVICES:
        yield f"files: programs see devices of the host: {sorted(foreign)}"
    if seen["unmasked"]:
        yield f"files: programs see {seen['unmasked']}, which Docker should cover up"
    # Numbers of another machine's namespaces may be ours by chance.
    here = own if seen["boot"] == _boot() else {}
    for name, number in seen["namespaces"].items():
        if number in (FIRST.get(name), here.get(name)):
            what = {"net": "network", "mnt": "files"}.get(name, "processes")
            yield f"{what}: programs share the host's {name} namespace"
    most = options.rlimits(probe.LIMITS)
    for name, limit in seen["rlimits"].items():
        if not 0 <= limit <= most[name]:
            told = "any" if limit < 0 else limit
            yield f"{RLIMITS[name]}: the rlimit {name} is {told}, where {most[name]} is allowed"


def _mounts(seen: dict[str, Any]) -> Iterator[str]:
    for place, kind, flags in seen["mounts"]:
        if place == "/" and "ro" not in flags:
            yield "files: the image's files are writable"
        if place != "/" and kind not in KERNEL and place not in FROM_DOCKER:
            yield f"files: {place} is mounted from the host ({kind})"
    if foreign := set(seen["writable"]) - WRITABLE:
        yield f"disk: programs can write to {sorted(foreign)}, where no limit holds"
    if missing := NEEDED - set(seen["writable"]):
        yield f"disk: programs cannot write to {sorted(missing)}"


def _own() -> dict[str, int]:
    """Return the namespaces of this process, which no container may share."""
    return {name: Path(f"/proc/self/ns/{name}").stat().st_ino for name in NAMESPACES}


def _boot() -> str:
    """Return what is another for each machine and each start of it."""
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
