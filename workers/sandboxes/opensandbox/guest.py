"""Our programs in a fresh sandbox: put there, set up once, and what can be promised then."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator
from importlib import resources
from itertools import count
from typing import Literal
from uuid import uuid4

from opensandbox import Sandbox
from pydantic import JsonValue, ValidationError

from common.failures import ConfigurationError
from common.model import Contract
from workers.sandboxes import agent
from workers.sandboxes.opensandbox.settings import OpenSandboxSettings
from workers.sandboxes.opensandbox.steps import PYTHON, ask, upload
from workers.sandboxes.protocol import SandboxStartError, SandboxUnsupported
from workers.sandboxes.spec import Limits, SandboxSpec

USERS = 1 << 31
"""Each sandbox gets a user of its own, so that no kernel counts its processes with another's."""
OVERHEAD_MB = 40
"""Memory that execd and our programs need beside what the limits grant."""
NO_PYTHON, OLD_PYTHON = 127, 78
SETUP = (
    f"command -v python3 >/dev/null || exit {NO_PYTHON}; "
    f"python3 -I -S -c 'import sys; sys.exit(sys.version_info < (3, 9))' || exit {OLD_PYTHON}; "
    f"{PYTHON} -I -S -B {{folder}}/inside.py setup"
)


class Guest(Contract):
    """What was found inside."""

    folder: str
    """Where our programs and the requests lie."""
    user: int
    """The user that the programs of agents run as."""
    core: int
    """The largest core file, in bytes, that they may leave."""
    python: str


class Refusal(Contract):
    """Why there can be no sandbox."""

    trouble: str
    of: Literal["image", "server"]


def numbers() -> Iterator[int]:
    """Yield a number for each user: none comes again before all others did."""
    return count(secrets.randbelow(USERS))


async def move_in(
    box: Sandbox, image: str, limits: Limits, number: int, *, chosen_by_task: bool
) -> Guest:
    """Put our programs into a sandbox and let them look around.

    Raises `SandboxLost` when it cannot be talked to; where the image will not do,
    `SandboxUnsupported` or `ConfigurationError`, after who chose it; and `ConfigurationError` where
    its server will not.
    """
    folder = f"/tmp/.fleet-{uuid4().hex[:12]}"
    wish = {"number": number, "users": USERS, "limits": rlimits(limits)}
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
            refusal = Refusal.model_validate(found)
            if refusal.of == "server":
                raise ConfigurationError(f"the server's sandboxes will not do: {refusal.trouble}")
            raise unfit(f"the image {image} will not do: {refusal.trouble}")
        return Guest.model_validate({**found, "folder": folder})
    except (ValueError, TypeError, ValidationError):
        raise SandboxStartError(
            f"our program in a sandbox of {image} ended with {exit_code}: {line}"
        ) from None


def rlimits(limits: Limits) -> dict[str, JsonValue]:
    """Return the kernel's limits for programs, by their names."""
    return {
        "cpu": math.ceil(limits.cpu),
        "fsize": limits.file_mb << 20,
        "nofile": limits.open_files,
        "nproc": limits.pids,
        "core": 1,  # a byte; as the agent sets it elsewhere
    }


def less(found: Guest, limits: Limits) -> dict[str, JsonValue]:
    """Return what programs are allowed; the agent is allowed more."""
    lower = {**rlimits(limits), "core": found.core}
    return {"user": found.user, "group": found.user, "limits": lower}


def promises(
    found: Guest, spec: SandboxSpec, settings: OpenSandboxSettings
) -> dict[str, JsonValue]:
    """Return each promise and how it is kept; `probe` says which are not."""
    limits = spec.limits
    by = "helper: rlimit"
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
        "user": f"helper: {found.user}",
        "processes": "server: container",
        "files": "server: container of its own",
        "privileges": "helper: no capabilities, no_new_privs; server: execd obeys its key only",
        "replies": "helper: programs cannot reach it",
    }
