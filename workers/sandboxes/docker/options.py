"""The options that make a container a sandbox: each takes something away."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from workers.sandboxes.agent_sandbox import ENV
from workers.sandboxes.docker.images import Image
from workers.sandboxes.python_packages import THREADS
from workers.sandboxes.spec import Limits

INSIDE_ID = 1000
"""User and group of everything in a container."""
SHM_MB = 16
OVERHEAD_MB = 24
"""Memory that the agent needs beside what the limits grant to programs."""
SECCOMP = Path(str(files("workers.sandboxes.docker").joinpath("seccomp.json")))
"""Read by the docker command, not by the daemon, which may be elsewhere."""


def run(image: Image, limits: Limits, name: str, labels: Mapping[str, str]) -> Iterator[str]:
    """Yield the arguments of the docker command for one container."""
    yield from ("run", "--name", name, "--rm", "--interactive", "--sig-proxy=false")
    yield from ("--pull", "never", "--log-driver", "none", "--no-healthcheck", "--init=false")
    yield from _isolation()
    yield from _limits(limits)
    for key, value in labels.items():
        yield from ("--label", f"{key}={value}")
    yield from ("--workdir", "/work", "--entrypoint", "python3", image.id)
    # -B as for all programs; -I: nothing in the image's variables or folders changes the agent.
    yield from ("-I", "-B", "-c", boot())


def rlimits(limits: Limits) -> dict[str, int]:
    """Return the limits of each process, as Docker names them.

    Not nproc: the kernel counts that for a user on the whole host, other containers included.
    """
    return {
        "core": 1,  # a byte; as the agent sets it elsewhere
        "cpu": math.ceil(limits.cpu),
        "fsize": limits.file_mb << 20,
        "memlock": 64 << 10,
        "msgqueue": 64 << 10,
        "nofile": limits.open_files,
        "rtprio": 0,
    }


def environment(image: Image) -> dict[str, str]:
    """Return what programs see: the image's variables, below ours, which know the sandbox.

    Only where programs are found, and how many threads a library starts, the image knows better.
    """
    path = image.env.get("PATH") or ENV["PATH"]
    return {**THREADS, **image.env, **ENV, "PATH": path}


@cache
def boot() -> str:
    return files("workers.sandboxes.docker").joinpath("boot.py").read_text("utf-8")


def _isolation() -> Iterator[str]:
    yield from ("--user", f"{INSIDE_ID}:{INSIDE_ID}", "--cap-drop", "ALL")
    yield from ("--security-opt", "no-new-privileges", "--security-opt", f"seccomp={SECCOMP}")
    yield from ("--network", "none", "--ipc", "private", "--cgroupns", "private")
    yield from ("--hostname", "sandbox", "--read-only")


def _limits(limits: Limits) -> Iterator[str]:
    memory = f"{limits.memory_mb + OVERHEAD_MB}m"
    yield from ("--memory", memory, "--memory-swap", memory)  # the same: no swap
    yield from ("--pids-limit", str(limits.pids + 1))  # the agent is one of them
    # When the host runs out of memory, sandboxes go before workers.
    yield from ("--oom-score-adj", "500")
    for limit, value in rlimits(limits).items():
        yield from ("--ulimit", f"{limit}={value}:{value}")
    disk = f"size={limits.disk_mb}m,nr_inodes={limits.inodes}"
    yield from _tmpfs("/work", f"{disk},exec,mode=700")
    yield from _tmpfs("/tmp", f"{disk},exec,mode=1777")
    yield from _tmpfs("/dev/shm", f"size={SHM_MB}m,nr_inodes=1024,noexec,mode=1777")


def _tmpfs(path: str, options: str) -> tuple[str, str]:
    # Ours by owner too: some versions of runc keep the mode of the image's folder instead.
    return "--tmpfs", f"{path}:{options},nosuid,nodev,uid={INSIDE_ID},gid={INSIDE_ID}"
