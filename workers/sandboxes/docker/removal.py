"""Removes a container by its name, and says what became of it as far as Docker tells."""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum

from common.failures import ConfigurationError
from workers.sandboxes.docker.client import Docker
from workers.sandboxes.protocol import SandboxError, SandboxStartError


class Removal(StrEnum):
    """What became of a container that was to be removed."""

    DONE = "it was there and is gone"
    ABSENT = "there is none"
    UNKNOWN = "nobody said; it may still be there"


async def remove(docker: Docker, name: str, patience: float) -> Removal:
    """Kill a container and wait until it is removed, ``patience`` seconds at most. Never raises."""
    deadline = time.monotonic() + patience
    seen = False
    while (left := deadline - time.monotonic()) > 0:
        try:
            told = await docker.run("rm", "--force", "--volumes", name, patience=left)
        except SandboxStartError as error:
            said = str(error).lower()
            if "no such container" in said:
                return Removal.DONE if seen else Removal.ABSENT
            if "already in progress" not in said:
                break
            seen = True
            await asyncio.sleep(0.05)  # somebody else removes it: nothing to await
        except (SandboxError, ConfigurationError):
            break
        else:
            # Some versions say of one that is not there only that all went well.
            return Removal.DONE if seen or name in told.split() else Removal.ABSENT
    return Removal.UNKNOWN
