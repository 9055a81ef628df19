"""The text that tells nsjail what a jail is made of: namespaces, mounts, limits, system calls."""

from __future__ import annotations

import math
import os
import platform
import string
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

from pydantic import Field

from common.model import Contract
from workers.sandboxes.python_packages import INSIDE
from workers.sandboxes.spec import Limits

INSIDE_ID = 1000
"""User and group as programs in the jail see themselves."""
AGENT = "/run/agent"
"""Where the agent's code lies inside."""
SHM_MB = 16
LAST_RESORT = 7 * 86_400.0
"""Seconds after which nsjail ends any jail, whatever its agent does."""
OVERHEAD_MB = 24
"""Memory that nsjail and the agent need beside what the limits grant to programs."""
NICE = 2
"""A little behind the worker, which must answer its heartbeats; nsjail's default of 19 starves."""

ETC = {
    "passwd": f"agent:x:{INSIDE_ID}:{INSIDE_ID}:agent:/work:/bin/sh\n",
    "group": f"agent:x:{INSIDE_ID}:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
# The merged /usr holds everything; distributions differ in which of these are links into it.
SYSTEM_FOLDERS = ("/usr", "/bin", "/lib", "/lib64")
# Where many programs of /usr are found (awk, cc), and their libraries; absent in small images.
OPTIONAL = ("/etc/alternatives", "/etc/ld.so.cache")
LIBRARIES = ("lib", "lib64", "local/lib", "local/lib64")
"""Below /usr, where Pythons keep what was installed for them."""
DEVICES = ("null", "zero", "full", "random", "urandom")
LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
}


class JailConfig(Contract):
    """Everything that makes one jail differ from another."""

    limits: Limits
    outside_uid: int
    outside_gid: int
    interpreter: Path
    """Of the jail; below one of the folders that are mounted."""
    agent: bytes
    """Compiled by that interpreter."""
    cgroup: bool
    """Whether a control group limits memory and processes of the jail as a whole."""
    packages: dict[str, Path] = Field(default_factory=dict)
    """Folders of Python packages on this host, by the names they have inside."""


@cache
def seccomp(*, counted: bool) -> tuple[str, str]:
    """Return the policy for this machine's system calls, and what kind of list it is.

    ``counted``: whether a control group counts all memory, also what no process maps.
    """
    folder = files("workers.sandboxes.nsjail")
    names = "fleet" if counted else "fleet_uncounted, USE fleet"
    denied = folder.joinpath("seccomp.kafel").read_text("utf-8")
    if not counted:
        denied += folder.joinpath("seccomp.uncounted.kafel").read_text("utf-8")
    allowed = folder.joinpath(f"seccomp.{platform.machine()}.kafel")
    if not allowed.is_file():
        return f"{denied}\nUSE {names} DEFAULT ALLOW\n", "deny list"
    names += f", USE fleet_{platform.machine()}"
    # 38 is ENOSYS: what is in neither list does not exist.
    return f"{denied}\n{allowed.read_text('utf-8')}\nUSE {names} DEFAULT ERRNO(38)\n", "allow list"


def address_space_mb(limits: Limits) -> int:
    """MiB of addresses one process may map where no cgroup counts memory.

    Twice the memory: threads and allocators reserve more than they use. What is really used, by
    all processes together, the agent watches.
    """
    return 2 * limits.memory_mb


def text(jail: JailConfig) -> str:
    """Return the configuration file, in protobuf text format."""
    return "\n".join((*_basics(jail), *_rlimits(jail), *_mounts(jail))) + "\n"


def _basics(jail: JailConfig) -> Iterator[str]:
    yield 'name: "fleet" hostname: "sandbox" cwd: "/work" mode: ONCE'
    # The agent and the worker keep the ttl, which can be renewed; this is the last resort.
    life = math.ceil(max(jail.limits.ttl, LAST_RESORT))
    nice = max(NICE, os.getpriority(os.PRIO_PROCESS, 0))  # less than the worker's own is refused
    yield f"time_limit: {life} nice_level: {nice} log_level: WARNING"
    yield "keep_env: false keep_caps: false disable_no_new_privs: false"
    for namespace in ("net", "user", "ns", "pid", "ipc", "uts", "cgroup"):
        yield f"clone_new{namespace}: true"
    for kind, outside in (("uid", jail.outside_uid), ("gid", jail.outside_gid)):
        yield f'{kind}map {{ inside_id: "{INSIDE_ID}" outside_id: "{outside}" count: 1 }}'
    yield f"seccomp_string: {quote(seccomp(counted=jail.cgroup)[0])}"
    yield (
        f"exec_bin {{ path: {quote(str(jail.interpreter))} "
        f'arg: "-I" arg: "-B" arg: {quote(AGENT)} }}'
    )


def _rlimits(jail: JailConfig) -> Iterator[str]:
    """Without an explicit type VALUE, nsjail ignores several of these numbers."""
    limits = jail.limits
    # One for the agent; with a cgroup a little more, so that its counter tells who hit the limit.
    nproc = limits.pids + (17 if jail.cgroup else 1)
    values = {
        "cpu": math.ceil(limits.cpu),
        "fsize": limits.file_mb,
        "nofile": limits.open_files,
        "nproc": nproc,
        "stack": 8,
        "memlock": 64,
        "rtprio": 0,
        "msgqueue": 65536,
    }
    for name, value in values.items():
        yield f"rlimit_{name}: {value} rlimit_{name}_type: VALUE"
    yield "rlimit_core_type: HARD"  # as it is; the agent makes it a single byte
    if jail.cgroup:
        yield "rlimit_as_type: INF"
    else:
        yield f"rlimit_as: {address_space_mb(limits)} rlimit_as_type: VALUE"


def _mounts(jail: JailConfig) -> Iterator[str]:
    limits = jail.limits
    for folder in SYSTEM_FOLDERS:
        path = Path(folder)
        if path.is_symlink():
            yield _link(folder, str(path.readlink()))
        elif path.is_dir():
            yield _bind(folder)
    for folder in OPTIONAL:
        if Path(folder).exists():
            yield _bind(folder, mandatory=False)
    for folder in _foreign_packages():
        yield _nothing(folder)
    for name, source in jail.packages.items():
        yield _bind(str(source), f"{INSIDE}/{name}")
    for name, content in ETC.items():
        yield _content(f"/etc/{name}", content.encode())
    yield _content(AGENT, jail.agent)
    for name in DEVICES:
        yield f'mount {{ src: "/dev/{name}" dst: "/dev/{name}" is_bind: true rw: true }}'
    for link, target in LINKS.items():
        yield _link(link, target)
    yield _tmpfs("/work", limits.disk_mb, limits.inodes, "700")
    yield _tmpfs("/tmp", limits.disk_mb, limits.inodes, "1777")
    yield _tmpfs("/dev/shm", SHM_MB, 1024, "1777")
    # subset=pid: nothing about the machine; hidepid=2: not even that the agent exists. But where
    # the agent has to see what all programs use, none may make itself invisible.
    hidden = "subset=pid,hidepid=2" if jail.cgroup else "subset=pid"
    yield f'mount {{ dst: "/proc" fstype: "proc" options: "{hidden}" rw: false }}'


@cache
def _foreign_packages() -> tuple[str, ...]:
    """Return the folders of Python packages that this host has for itself.

    They would differ from host to host, and start-up files among them run in every Python program.
    """
    patterns = (f"{lib}/python3*/{kind}-packages" for lib in LIBRARIES for kind in ("dist", "site"))
    found = {path.resolve() for pattern in patterns for path in Path("/usr").glob(pattern)}
    return tuple(sorted(str(path) for path in found if path.is_relative_to("/usr")))


def _nothing(folder: str) -> str:
    """Put an empty folder over one that is mounted."""
    flags = "rw: false nosuid: true nodev: true"
    return f'mount {{ dst: {quote(folder)} fstype: "tmpfs" options: "size=4k" {flags} }}'


def _bind(path: str, inside: str | None = None, *, mandatory: bool = True) -> str:
    flags = f"rw: false nosuid: true nodev: true mandatory: {str(mandatory).lower()}"
    return f"mount {{ src: {quote(path)} dst: {quote(inside or path)} is_bind: true {flags} }}"


def _link(path: str, target: str) -> str:
    return f"mount {{ src: {quote(target)} dst: {quote(path)} is_symlink: true }}"


def _content(path: str, content: bytes) -> str:
    return f"mount {{ src_content: {quote(content)} dst: {quote(path)} rw: false }}"


def _tmpfs(path: str, size_mb: int, inodes: int, mode: str) -> str:
    options = f"size={size_mb}M,nr_inodes={inodes},mode={mode}"
    flags = "rw: true nosuid: true nodev: true"
    return f'mount {{ dst: "{path}" fstype: "tmpfs" options: "{options}" {flags} }}'


@lru_cache(maxsize=128)
def quote(value: str | bytes) -> str:
    """Return a protobuf text literal; every byte that could mean something else is escaped.

    The agent and the policy are long and the same for every jail, hence the cache.
    """
    return '"' + "".join(_LITERAL[byte] for byte in os.fsencode(value)) + '"'


_PLAIN = (string.ascii_letters + string.digits + " !#$%&()*+,-./:;<=>?@[]^_`{|}~").encode()
_LITERAL = [chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in range(256)]
