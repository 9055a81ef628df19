"""Our programs in a fresh sandbox: put there, set up once, and what can be promised then."""

from __future__ import annotations

import json
import math
import random
from importlib import resources
from uuid import uuid4

from opensandbox import Sandbox
from pydantic import JsonValue, ValidationError

from common.failures import ConfigurationError
from common.model import Contract
from workers.sandboxes import agent
from workers.sandboxes.opensandbox.settings import OpenSandboxSettings
from workers.sandboxes.opensandbox.steps import ask, upload
from workers.sandboxes.protocol import SandboxStartError, SandboxUnsupported
from workers.sandboxes.spec import Limits, SandboxSpec

FIRST_USER, LAST_USER = 10_000, 60_000
"""Each sandbox gets a user of its own, so that no kernel counts its processes with another's."""
OVERHEAD_MB = 40
"""Memory that execd and our programs need beside what the limits grant."""
NO_PYTHON, OLD_PYTHON = 127, 78
SETUP = (
    f"command -v python3 >/dev/null || exit {NO_PYTHON}; "
    f"python3 -I -S -c 'import sys; sys.exit(sys.version_info < (3, 9))' || exit {OLD_PYTHON}; "
    "exec python3 -I -S -B {folder}/inside.py setup"
)


class Guest(Contract):
    """What was found inside."""

    folder: str
    """Where our programs and the requests lie."""
    uid: int
    """The user that execd runs as, and so our programs."""
    user: int
    """The user that the programs of agents run as."""
    python: str

    @property
    def apart(self) -> bool:
        """Whether programs are kept apart from what watches them."""
        return self.uid != self.user


async def move_in(box: Sandbox, image: str, *, chosen_by_task: bool) -> Guest:
    """Put our programs into a sandbox and let them look around.

    Raises `SandboxLost` when it cannot be talked to, and where the image will not do,
    `SandboxUnsupported` or `ConfigurationError`, after who chose it.
    """
    folder = f"/tmp/.fleet-{uuid4().hex[:12]}"
    wish = {"user": random.randint(FIRST_USER, LAST_USER)}
    await upload(box, {
        f"{folder}/inside.py": resources.files(__package__).joinpath("inside.py").read_bytes(),
        f"{folder}/agent.py": agent.source("once"),
        f"{folder}/setup.json": json.dumps(wish).encode("ascii"),
    })  # fmt: skip
    line, exit_code = await ask(box, SETUP.format(folder=folder))
    unfit = SandboxUnsupported if chosen_by_task else ConfigurationError
    if exit_code in (NO_PYTHON, OLD_PYTHON):
        raise unfit(f"the image {image} has no python3 of version 3.9 or newer, which is needed")
    try:
        found = json.loads(line)
        if "trouble" in found:
            raise unfit(f"the image {image} will not do: {found['trouble']}")
        return Guest.model_validate({**found, "folder": folder})
    except (ValueError, TypeError, ValidationError):
        raise SandboxStartError(
            f"our program in a sandbox of {image} ended with {exit_code}: {line}"
        ) from None


def less(found: Guest, limits: Limits) -> dict[str, JsonValue] | None:
    """Return what programs are allowed, where the agent is allowed more."""
    if not found.apart:
        return None
    return {
        "user": found.user,
        "group": found.user,
        "limits": {
            "cpu": math.ceil(limits.cpu),
            "fsize": limits.file_mb << 20,
            "nofile": limits.open_files,
            "nproc": limits.pids,
            "core": 1,  # a byte; as the agent sets it elsewhere
        },
    }


def promises(
    found: Guest, spec: SandboxSpec, settings: OpenSandboxSettings
) -> dict[str, JsonValue]:
    """Return each promise and how it is kept; `probe` says which are not."""
    limits = spec.limits
    by = "helper: rlimit" if found.apart else "server: its own limits only;"
    if spec.network.mode == "allowlist":
        network = f"server: egress policy, {', '.join(spec.network.hosts)} only"
    else:
        network = "server: egress policy, deny all"
    if settings.network == "closed":
        network = "server: a network without a way out, as configured"
    return {
        "memory": f"server: container, {limits.memory_mb} + {OVERHEAD_MB} MiB for execd",
        "pids": f"{by} {limits.pids} together",
        "disk": "not limited",
        "file": f"{by} {limits.file_mb} MiB",
        "open_files": f"{by} {limits.open_files} each",
        "cpu": f"{by} {limits.cpu:g} s each; server: {settings.cpus:g} processors",
        "output": f"agent: {limits.output_bytes} bytes",
        "wall": f"agent: {limits.wall:g} s",
        "ttl": "worker and server",
        "network": network,
        "user": f"helper: {found.user}" if found.apart else f"image: {found.user}",
        "processes": "server: container",
        "files": "server: container of its own",
        "privileges": "helper: no capabilities, no_new_privs" if found.apart else "server: as set",
        "replies": "helper: programs cannot reach it"
        if found.apart
        else "not protected: programs are the same user as what watches them",
    }
