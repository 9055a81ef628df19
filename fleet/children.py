"""The processes of `fleet up`: started with their own logs, restarted when they crash, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from common.failures import ConfigurationError
from common.presence import clock
from common.queue.connection import Server, ServerGone
from common.queue.control import drain_asked
from common.service import AFTER_THE_REST, EXIT_CONFIGURATION

_BACKOFF = (0.5, 1.0, 2.0, 5.0, 10.0)
_LOADING = 5.0
"""Seconds within which a process listens after its start; on an idle machine it takes 1.5."""
_SLACK = 20.0
"""Seconds beyond what a process may take to end in order, before it is ended otherwise."""


@dataclass
class Child:
    """One process, over all its restarts."""

    name: str
    argv: list[str]
    log: Path
    env: Mapping[str, str]
    once: bool = False
    """It ends by itself; exit code 0 is no crash."""
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    started: float = 0.0
    stopping: bool = False
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int | None:
        alive = self.process is not None and self.process.returncode is None
        return self.process.pid if alive and self.process is not None else None

    @property
    def broken(self) -> int:
        """Its exit code, where it did not end in order; else 0.

        SIGTERM is heard, not died of, from the first of its work to the last.
        """
        code = self.process.returncode if self.process is not None else None
        return code if code and code != -signal.SIGTERM else 0

    async def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.argv,
                env=dict(self.env),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for us; we pass it on in order.
                start_new_session=True,
            )
        self.started = time.monotonic()

    async def keep_alive(self, asked_to_end: Callable[[], Awaitable[bool]]) -> None:
        """Restart after crashes, with back-off. Raises `ConfigurationError` as it said itself.

        ``asked_to_end``: may a process that ended in order have been meant to?
        """
        while not self.stopping:
            assert self.process is not None
            code = await self.process.wait()
            if self.stopping or (code == 0 and (self.once or await asked_to_end())):
                break
            if code == EXIT_CONFIGURATION:
                raise ConfigurationError(f"{self.name}: {last_words(self.log)}")
            if time.monotonic() - self.started > 60:
                self.restarts = 0
            pause = _BACKOFF[min(self.restarts, len(_BACKOFF) - 1)]
            self.restarts += 1
            await asyncio.sleep(pause)
            if not self.stopping:
                await self.start()
        self.finished.set()

    async def stop(self, *, grace: float, patience: float = 0.0) -> None:
        """Ask it to end; after ``grace`` seconds, end it.

        ``patience``: it has been asked otherwise, and gets so many seconds before the signal.
        """
        self.stopping = True
        if self.process is None or self.process.returncode is not None:
            return
        if patience:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self.process.wait()
                    return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace):
                await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    def kill(self) -> None:
        self.stopping = True
        if self.pid is not None and self.process is not None:
            self.process.kill()


async def end_in_order(
    children: Sequence[Child], server: Server, *, grace: float, asked: bool
) -> None:
    """End them in the order of the flow, so that what is finished is still reviewed.

    ``grace``: seconds that running attempts get. ``asked``: `fleet drain` has told all of them
    that listened when it came; these end by themselves, and only the others get a signal.
    """
    heard = await _heard(children, server) if asked else set()
    for name in ("dispatcher", "worker", "reviewer", "model"):
        # A reviewer that has heard goes on until nothing is left to review, or so much longer.
        patience = grace + _SLACK + (AFTER_THE_REST if name == "reviewer" else 0.0)
        await asyncio.gather(
            *(
                child.stop(grace=grace + _SLACK, patience=patience if child.name in heard else 0.0)
                for child in children
                if child.name.split("-")[0] == name
            )
        )


async def _heard(children: Sequence[Child], server: Server) -> set[str]:
    """Return the names of those that listened when the latest order to drain came."""
    names = set()
    with contextlib.suppress(ServerGone):
        for child in children:
            began = await clock(server) - (time.monotonic() - child.started)
            if child.name != "model" and await drain_asked(server, began + _LOADING) is not None:
                names.add(child.name)
    return names


def python(module: str, *args: str) -> list[str]:
    """Return the command line of one of our modules, in this very interpreter."""
    return [sys.executable, "-m", module, *args]


def environment(**more: str | None) -> dict[str, str]:
    """Return our environment with ``more`` on top, for a child that ends with us."""
    ours = {"FLEET_PARENT_PID": str(os.getpid()), "FLEET_METRICS_PORT": "0"}
    return {**os.environ, **ours, **{k: v for k, v in more.items() if v is not None}}


def last_words(log: Path) -> str:
    """Return the last error a process logged, as a sentence."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65_536))
            lines = file.read().splitlines()
    except OSError:
        return f"see {log}"
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            entry = orjson.loads(line)
            if isinstance(entry, dict) and "error" in entry:
                return str(entry["error"])
            continue
        text = line.decode(errors="replace").strip()
        if text:
            return text
    return f"it said nothing; see {log}"
