"""What a sandbox must hold, tried in a real one before the first task: each limit is run into."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

from common.failures import ConfigurationError
from workers.sandboxes.agent_sandbox import ENV
from workers.sandboxes.protocol import Sandbox
from workers.sandboxes.spec import Limits

LIMITS = Limits(
    memory_mb=48, pids=16, disk_mb=8, inodes=64, file_mb=4, open_files=40, output_bytes=4096,
    ttl=60, wall=20,
)  # fmt: skip
"""Of the sandbox that is looked at; odd on purpose, so that they are not a host's own."""

END_PATIENCE = 5.0
"""Seconds for a sandbox to end when its life is over."""
SECRETS = ("/var/run/docker.sock", "/run/docker.sock", "/proc/kcore", "/proc/sysrq-trigger")
"""What no program may open, whatever its files are made of."""

LOOK = """
import errno, json, os, resource, socket
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
def refused(attempt):
    try:
        attempt()
    except OSError:
        return True
def connect(address, family=2):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(3)
        s.connect(address)
def read(path):
    with open(path, "rb") as file:
        file.read(1)
print(json.dumps({
    "uid_map": [line.split() for line in open("/proc/self/uid_map")],
    "uid": os.getuid(),
    "capabilities": sorted({v.strip() for k, v in status.items() if k.startswith("Cap")}),
    "no_new_privs": status["NoNewPrivs"].strip(),
    "seccomp": status["Seccomp"].strip(),
    "interfaces": [name for _, name in socket.if_nameindex()],
    "unreachable": refused(lambda: connect(("192.0.2.1", 9))) and refused(lambda: connect(
        ("1.1.1.1", 443))),
    "host_files": [path for path in HOST_FILES if os.path.lexists(path)]
        + [path for path in SECRETS if os.path.lexists(path) and not refused(lambda: read(path))],
    "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "agent_hidden": bool(refused(lambda: read("/proc/1/environ"))),
    "vsock_refused": bool(refused(lambda: socket.socket(40, socket.SOCK_STREAM))),
    "namespaces_refused": bool(refused(lambda: NAMESPACE())),
    "read_only": bool(refused(lambda: open("/usr/fleet-probe", "w"))),
    "environment": sorted(os.environ),
    "cpu": resource.getrlimit(resource.RLIMIT_CPU)[1],
    "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
}))
"""
NAMESPACE = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def NAMESPACE():
    if libc.unshare(0x10000000) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
"""

TRY = """
import errno, json, os, resource
def until_refused(attempt, most):
    for done in range(most):
        try:
            attempt(done)
        except OSError as error:
            return done, errno.errorcode.get(error.errno, str(error))
    return most, None
def fill(folder):
    def attempt(n):
        with open(f"{folder}/fill-{n}", "wb") as file:
            file.write(b"x" * (1 << 20))
    return attempt
def clean(folder):
    for name in os.listdir(folder):
        if name.startswith("fill-"):
            os.unlink(f"{folder}/{name}")
found = {}
for folder in ("/work", "/tmp"):
    found["disk " + folder] = until_refused(fill(folder), MOST_MB)
    clean(folder)
    found["inodes " + folder] = until_refused(
        lambda n: open(f"{folder}/fill-{n}", "w").close(), MOST_INODES)
    clean(folder)
with open("/work/fill-big", "wb", buffering=0) as big:
    found["file"] = until_refused(lambda n: big.write(b"x" * (1 << 20)) < 1 << 20 and big.write(
        b"x"), MOST_FILE_MB)
clean("/work")
kept = []
found["open_files"] = until_refused(lambda n: kept.append(open("/dev/null")), MOST_OPEN)
kept.clear()
def child(n):
    pid = os.fork()
    if pid == 0:
        os.read(waiting, 1)
        os._exit(0)
waiting, wake = os.pipe()
found["pids"] = until_refused(child, MOST_PIDS)
print(json.dumps(found))
"""
TOGETHER = """
import os, time
for n in range({processes}):
    if os.fork() == 0:
        keep = bytearray({size})
        for n in range(0, len(keep), 4096): keep[n] = 1
        time.sleep(0.1)
        os._exit(0)
print("held" if all([os.wait()[1] == 0 for n in range({processes})]) else "refused")
"""
MEMORY = "keep = bytearray({size})\nfor n in range(0, len(keep), 4096): keep[n] = 1\nprint('held')"

EVERYWHERE = {
    "lo", "tunl0", "gre0", "gretap0", "erspan0", "ip_vti0",
    "sit0", "ip6tnl0", "ip6gre0", "ip6_vti0",
}  # fmt: skip
"""Interfaces that some kernels put into every new network namespace; they lead nowhere."""


async def broken_promises(
    sandbox: Sandbox, *, host_files: tuple[str, ...] = (), own_network: bool = True
) -> tuple[str, ...]:
    """Try everything a sandbox with `LIMITS` promises; return what does not hold.

    ``host_files`` are paths that must not be there; ``own_network`` says that no interface may be.
    Raises `ConfigurationError` when it cannot even run a program.
    """
    prelude = f"HOST_FILES, SECRETS = {host_files!r}, {SECRETS!r}\n{NAMESPACE}"
    seen = await _ask(sandbox, prelude + LOOK)
    broken = list(violations(seen, own_network=own_network))
    most = {
        "MOST_MB": LIMITS.disk_mb * 2, "MOST_INODES": LIMITS.inodes * 2,
        "MOST_FILE_MB": LIMITS.file_mb + 2, "MOST_OPEN": LIMITS.open_files * 2,
        "MOST_PIDS": LIMITS.pids * 2,
    }  # fmt: skip
    prelude = "".join(f"{name} = {value}\n" for name, value in most.items())
    broken += exceeded(await _ask(sandbox, prelude + TRY))
    hog = await sandbox.run_python(MEMORY.format(size=LIMITS.memory_mb << 21))
    if hog.status in ("oom", "error"):  # an error is its own MemoryError, for want of addresses
        part = LIMITS.memory_mb // 3 << 20
        hog = await sandbox.run_python(TOGETHER.format(processes=6, size=part))
    if "held" in hog.stdout or hog.status not in ("oom", "error", "ok"):
        broken.append(
            f"memory: programs may use {LIMITS.memory_mb * 2} MiB, where {LIMITS.memory_mb} are "
            f"allowed ({hog.status})"
        )
    talk = await sandbox.exec("yes", timeout=10)
    if talk.status != "output_limit" or len(talk.stdout) > LIMITS.output_bytes:
        broken.append(f"output: endless output is not stopped ({talk.status})")
    slow = await sandbox.exec("sleep 30", timeout=0.1)
    if slow.status != "timeout":
        broken.append(f"wall: a program that takes too long is not stopped ({slow.status})")
    if not await _dies_of_age(sandbox):
        broken.append("ttl: a sandbox lives on when its life is over")
    return tuple(broken)


async def _dies_of_age(sandbox: Sandbox) -> bool:
    """Say whether it ends with its life; it is of no use afterwards."""
    enforced = dict(sandbox.enforced)
    await sandbox.keep_alive(0.05)
    deadline = time.monotonic() + END_PATIENCE
    while await sandbox.is_alive() and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.02)  # nobody tells when it ends
    sandbox.enforced.update(enforced)
    return not await sandbox.is_alive()


async def _ask(sandbox: Sandbox, program: str) -> dict[str, Any]:
    result = await sandbox.run_python(program)
    try:
        if result.status == "ok":
            found: dict[str, Any] = json.loads(result.stdout)
            return found
    except ValueError:
        pass
    said = (result.stderr or result.stdout).strip()[-500:]
    raise ConfigurationError(f"a sandbox starts but cannot run a program ({result.status}): {said}")


def violations(seen: dict[str, Any], *, own_network: bool = True) -> Iterator[str]:
    """Yield each broken promise of isolation, in words for an operator."""
    if seen["uid"] == 0 or any(int(outside) == 0 for _, outside, _ in _mapped(seen)):
        yield "user: programs are root outside of their sandbox"
    if seen["capabilities"] != ["0" * 16]:
        yield f"privileges: programs keep capabilities {seen['capabilities']}"
    if seen["no_new_privs"] != "1":
        yield "privileges: no_new_privs is not set, so setuid programs work"
    if seen["seccomp"] != "2" or not seen["vsock_refused"]:
        yield "privileges: the seccomp filter is not active, or lets AF_VSOCK through"
    if not seen["namespaces_refused"]:
        yield "privileges: programs can make user namespaces, and have every capability in them"
    interfaces = set(seen["interfaces"]) - EVERYWHERE
    if (interfaces and own_network) or not seen["unreachable"]:
        yield f"network: programs see the network (interfaces {sorted(interfaces)})"
    if seen["host_files"]:
        yield f"files: programs see files of the host: {seen['host_files']}"
    if not seen["pids"] or max(seen["pids"]) > 400:
        yield "processes: programs see processes of the host"
    if not seen["agent_hidden"]:
        yield "processes: programs can look into the agent"
    if not seen["read_only"]:
        yield "files: the system folders are writable"
    if not 0 < seen["cpu"] <= LIMITS.cpu:
        yield f"cpu: programs may use {seen['cpu']} s of processor time each (-1: any)"
    if seen["core"] not in (0, 1):
        yield "files: a crash may call the host's handler, or leave its memory in a file"
    if foreign := set(seen["environment"]) - set(ENV):
        yield f"files: programs see the worker's environment: {sorted(foreign)}"


def _mapped(seen: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the lines of the user map that cover the program's own id."""
    for line in seen["uid_map"]:
        inside, outside, count = (int(field) for field in line)
        if inside <= seen["uid"] < inside + count:
            yield [str(inside), str(outside + seen["uid"] - inside), str(count)]


def exceeded(found: dict[str, Any]) -> Iterator[str]:
    """Yield each limit that let more through than it should."""
    for name, most, unit in (
        ("disk /work", LIMITS.disk_mb, "MiB in /work"),
        ("disk /tmp", LIMITS.disk_mb, "MiB in /tmp"),
        ("inodes /work", LIMITS.inodes, "files in /work"),
        ("inodes /tmp", LIMITS.inodes, "files in /tmp"),
        ("file", LIMITS.file_mb, "MiB in one file"),
        ("open_files", LIMITS.open_files, "open files"),
        ("pids", LIMITS.pids, "processes"),
    ):
        done, why = found[name]
        if done > most:
            yield (
                f"{name.split()[0].replace('inodes', 'disk')}: programs can have {done} {unit} "
                f"and more, where {most} are allowed"
            )
        elif done == 0:
            yield f"{name.split()[0]}: programs can have no {unit} at all ({why})"
