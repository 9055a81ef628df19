"""One running container and everything that has to go when it goes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence

from common.failures import ConfigurationError
from workers.sandboxes.docker.client import Docker, failure, not_run
from workers.sandboxes.docker.images import Image
from workers.sandboxes.docker.removal import Removal, remove
from workers.sandboxes.docker.tail import Tail
from workers.sandboxes.processes import burial
from workers.sandboxes.protocol import SandboxError, SandboxUnsupported

EXIT_PATIENCE = 2.0
"""Seconds the agent gets to exit once its wire is closed, and Docker to clear up after it."""
END_PATIENCE = 8.0
"""Seconds for one more try, by force, on a daemon that is busy."""
LOG_PATIENCE = 2.0
"""Seconds the docker command gets to say why a container did not start, or how it ended."""
STREAM_BUFFER = 1 << 20
NOT_RUNNABLE, NOT_FOUND, TOO_OLD = 126, 127, 91
"""Exit codes of the docker command for a program it cannot run, and of our boot.py."""
NOT_EXECUTED = ("exec format error", "python3: no such file or directory")
"""Said too late for an exit code of its own: made for another processor, or without its libc."""
BROKEN = 125
"""Its exit code when it was Docker itself that failed; then nothing is known of the container."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Container:
    """Starts one container, and ends it without leaving anything behind.

    The docker command that started it stays as its keeper: the agent's wire runs through it, and
    it ends when the container has ended and is removed. When it dies, or we do, Docker closes the
    agent's input, whereupon the agent exits.
    """

    def __init__(self, docker: Docker, name: str, image: Image, doubtful: set[str]) -> None:
        self.name = name
        self._docker = docker
        self._image = image
        self._doubtful = doubtful
        """Names of containers that may still exist, for the reaper."""
        self._complaints: Tail | None = None
        """Of Docker and of the agent; an image's Python may write there whatever it likes."""
        self._process: subprocess.Popen[bytes] | None = None
        self._exited: asyncio.Future[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._ending: asyncio.Task[None] | None = None
        self._out_of_memory = 0
        self._counted_until = time.time()

    async def start(self, arguments: Sequence[str], agent: bytes) -> Streams:
        """Start it and hand it the agent; returns the streams on which that will speak.

        Raises what `not_run` makes of a command that does not start. `end` is due in any case.
        """
        path = self._docker.path()
        try:
            reader, self._writer = await self._start([path, *arguments])
        except OSError as error:
            raise not_run(path, error) from None
        self._writer.write(len(agent).to_bytes(4, "big") + agent)
        return reader, self._writer

    async def _start(self, command: list[str]) -> Streams:
        self._complaints = Tail()
        ours, theirs = socket.socketpair()
        try:
            # Not asyncio's subprocesses: uvloop's copy the worker's page tables (13 ms more),
            # asyncio's keep a thread each. This one is started by vfork and watched by pidfd.
            self._process = subprocess.Popen(  # noqa: ASYNC220 - returns within a millisecond
                command, stdin=theirs.fileno(), stdout=theirs.fileno(),
                stderr=self._complaints.writing, cwd="/",
                start_new_session=True,  # a Ctrl-C is for the worker, which then ends in order
            )  # fmt: skip
            self._exited = burial(self._process)
            return await asyncio.open_connection(sock=ours, limit=STREAM_BUFFER)
        except BaseException:
            ours.close()
            if self._process is not None and self._exited is None:
                # No descriptor was left to watch it by. So early it has made no container yet.
                self._process.kill()
                self._process.wait()
            raise
        finally:
            theirs.close()
            self._complaints.handed_over()

    @property
    def running(self) -> bool:
        return self._exited is not None and not self._exited.done()

    async def log(self) -> str:
        """Return what Docker and the agent complained about, and how it ended if it did."""
        code = await self._exit_code(LOG_PATIENCE)
        text = self._said()
        return text if code is None else f"{text} (docker: exit code {code})".lstrip()

    async def why_not_started(self) -> SandboxError | ConfigurationError:
        """Return why no agent came up."""
        code = await self._exit_code(LOG_PATIENCE)
        name, said = self._image.reference, self._said()
        if code in (NOT_RUNNABLE, NOT_FOUND) or any(text in said for text in NOT_EXECUTED):
            return SandboxUnsupported(
                f"the image {name} has no python3 that runs here, which sandboxes need: {said}"
            )
        if code == TOO_OLD:
            return SandboxUnsupported(
                f"the image {name} has a Python older than 3.9, which sandboxes need: {said}"
            )
        state = "nothing within its time" if code is None else f"exit code {code}"
        return failure(f"no sandbox of the image {name} came up ({state})", said)

    def counters(self) -> tuple[int, int]:
        """Return (processes killed for memory, processes refused).

        The agent counts them inside; only when it was itself killed somebody else has to tell,
        and then only of what happened after the agent was last heard.
        """
        self._counted_until = time.time()
        return self._out_of_memory, 0

    def label(self, labels: Mapping[str, str]) -> None:
        """Do nothing: Docker fixes the labels of a container when it makes it."""

    async def end(self) -> None:
        """End it and remove all traces. Never raises, takes 20 s at most; idempotent."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name=f"end {self.name}")
        # Whoever is cancelled while he waits must not leave a half-ended container behind.
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        if self._writer and not self._writer.is_closing():
            # The agent exits, and Docker removes its container. Our ear stays open: the docker
            # command would die of a word that nobody takes, before all that is done.
            self._writer.write_eof()
        code = await self._exit_code(EXIT_PATIENCE)
        if code is None or code < 0 or code == BROKEN:
            await self._force()
        elif code == 128 + signal.SIGKILL:
            await self._ask_why_killed()
        if self._complaints is not None:
            self._complaints.close()

    async def _force(self) -> None:
        """Remove the container whatever it does, and the docker command with it."""
        self._doubtful.add(self.name)
        # Still making the container, it sees by itself that nobody wants it any more.
        removal, code = await asyncio.gather(
            remove(self._docker, self.name, END_PATIENCE), self._exit_code(END_PATIENCE)
        )
        if code is None and self._process is not None:
            self._process.kill()
            await self._exit_code(EXIT_PATIENCE)
            if removal is not Removal.DONE:
                removal = await remove(self._docker, self.name, END_PATIENCE)
        # Of a command that was killed, the daemon may still make the container it asked for.
        known = code is not None and code >= 0
        if removal is Removal.DONE or (removal is Removal.ABSENT and known):
            self._doubtful.discard(self.name)
        else:
            self._doubtful.add(self.name)  # a reaper may have looked too early

    async def _ask_why_killed(self) -> None:
        """Find out whether it was for memory that the container was killed, agent and all.

        A program that ran out of memory before, in a step that the agent told of, is no reason;
        and where somebody ordered the kill, memory was none.
        """
        now = time.time()  # with its fraction: Docker rounds its own "0s" down to whole seconds
        with contextlib.suppress(SandboxError, ConfigurationError):
            told = await self._docker.run(
                "events", "--since", f"{self._counted_until:.9f}", "--until", f"{now:.9f}",
                "--filter", f"container={self.name}",
                "--filter", "event=oom", "--filter", "event=kill",
                "--format", "{{.Action}}", patience=EXIT_PATIENCE,
            )  # fmt: skip
            happened = told.split()
            if "kill" not in happened:
                self._out_of_memory += happened.count("oom")

    def _said(self) -> str:
        return self._complaints.text() if self._complaints is not None else ""

    async def _exit_code(self, patience: float) -> int | None:
        """Return the docker command's, once it has ended; None if it does not in time."""
        if self._process is None:
            return 0
        if self._exited is not None:
            await asyncio.wait([self._exited], timeout=patience)
        return self._process.returncode
