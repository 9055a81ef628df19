"""The docker command: calls that end in time, and what its failures mean."""

from __future__ import annotations

import asyncio
import errno
import shutil

from common.failures import ConfigurationError
from workers.sandboxes.protocol import SandboxError, SandboxStartError, SandboxUnavailable

PATIENCE = 30.0
"""Seconds for one short command; on a quiet machine most take 0.05."""
UNREACHABLE = (
    "cannot connect to the docker daemon",
    "error during connect",
    "is the docker daemon running",
    "connection refused",
    "connection reset",
    "i/o timeout",
    "no such host",
    "failed to connect to the docker api",
)
FROM_DAEMON = "error response from daemon"
"""Where it begins so, somebody does answer, whoever else could not be reached."""
NO_PROGRAM = (errno.ENOEXEC, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""What the kernel says of a file that is none, or not for us; anything else may pass."""
FORBIDDEN = ("permission denied while trying to connect", "client is denied")


class Docker:
    """The docker command of this host, and the daemon that it talks to.

    Which daemon that is, the command finds out by itself: DOCKER_HOST, its context, or the socket.
    """

    def __init__(self, command: str = "docker") -> None:
        self._command = command

    def path(self) -> str:
        """Return where the command lies. Raises `ConfigurationError` saying how to get it."""
        found = shutil.which(self._command)
        if found is None:
            raise ConfigurationError(
                f"the docker back-end needs the command {self._command!r}: "
                "apt-get install -y --no-install-recommends docker.io"
            )
        return found

    async def run(self, *arguments: str, patience: float = PATIENCE) -> str:
        """Return what a command printed.

        Raises what `failure` makes of one that failed, and `not_run` of one that did not start.
        """
        path = self.path()
        try:
            process = await asyncio.create_subprocess_exec(
                path, *arguments, cwd="/",
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            raise not_run(path, error) from None
        try:
            async with asyncio.timeout(patience):
                out, err = await process.communicate()
        except TimeoutError:
            raise SandboxUnavailable(
                f"docker {arguments[0]} did not end within {patience:g} s"
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise failure(f"docker {arguments[0]}", err.decode("utf-8", "replace"))
        return out.decode("utf-8", "replace")


def not_run(path: str, error: OSError) -> SandboxError | ConfigurationError:
    """Return what it means that the command could not be run: it is broken, or the host is full."""
    if error.errno in NO_PROGRAM:
        return ConfigurationError(
            f"the docker command {path} cannot be executed ({error.strerror}): install it anew"
        )
    return SandboxUnavailable(f"the docker command {path} could not be started: {error}")


def failure(doing: str, said: str) -> SandboxError | ConfigurationError:
    """Return what a failed command means: nobody there, a person's work, or worth another try."""
    said = said.strip()[-1000:]
    lower = said.lower()
    if any(words in lower for words in FORBIDDEN):
        return ConfigurationError(
            f"{doing}: this user may not use the Docker daemon; add it to the group docker, or "
            f"point DOCKER_HOST to a rootless one [{said}]"
        )
    if FROM_DAEMON not in lower and any(words in lower for words in UNREACHABLE):
        return SandboxUnavailable(f"{doing}: no Docker daemon answers [{said}]")
    return SandboxStartError(f"{doing}: {said or 'it failed without a word'}")
