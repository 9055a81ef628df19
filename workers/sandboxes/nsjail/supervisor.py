"""One running nsjail and everything that has to go when it goes: processes, cgroup, record."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from workers.sandboxes.nsjail import config
from workers.sandboxes.nsjail.records import Record, Records
from workers.sandboxes.processes import ProcessMark, burial
from workers.sandboxes.protocol import SandboxStartError

TERM_PATIENCE = 1.0
"""Seconds between SIGTERM and SIGKILL, and then until the kernel is done."""
LOG_PATIENCE = 0.2
"""Seconds nsjail gets to say how the agent ended."""
STREAM_BUFFER = 1 << 20

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Supervisor:
    """Starts one jail, and ends it without leaving anything behind."""

    def __init__(self, records: Records, record: Record) -> None:
        self.record = record
        self._records = records
        # nsjail and the agent complain here. A file in memory needs nobody to drain it, and
        # programs in the jail cannot reach it.
        self._log = os.memfd_create("sandbox-log")
        self._process: subprocess.Popen[bytes] | None = None
        self._exited: asyncio.Future[None] | None = None
        self._last_counters: tuple[int, int] | None = None

    async def start(self, binary: Path, jail: config.JailConfig) -> Streams:
        """Start nsjail; returns the streams on which the agent will speak.

        The jail ends when this process ends, however that happens: its agent then reads the end
        of its input and exits, and being PID 1 takes every process in the jail along.
        Raises `SandboxStartError`.
        """
        cgroup = self.record.cgroup
        ours, theirs = socket.socketpair()
        text = os.memfd_create("sandbox-config")
        try:
            if cgroup:
                cgroup.create(jail.limits)
            os.write(text, config.text(jail).encode())
            joins = [str(file) for file in cgroup.joins] if cgroup else []
            # Not asyncio's subprocesses: uvloop's copy the worker's page tables (13 ms more),
            # asyncio's keep a thread each. This one is started by vfork and watched by pidfd.
            self._process = subprocess.Popen(  # noqa: ASYNC220 - returns within a millisecond
                ["/bin/sh", "-c", _launcher(), "sh", str(len(joins)), *joins,
                 str(binary), "--config", f"/proc/self/fd/{text}"],
                stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=self._log,
                pass_fds=(text,), env={}, cwd="/",
                start_new_session=True,  # a Ctrl-C is for the worker, which then ends in order
            )  # fmt: skip
            self._exited = burial(self._process)
            streams = await asyncio.open_connection(sock=ours, limit=STREAM_BUFFER)
        except BaseException as error:
            ours.close()
            if self._process is not None and self._exited is None:
                # No descriptor was left to watch it by.
                self._process.kill()
                self._process.wait()
            if not isinstance(error, OSError):
                raise
            raise SandboxStartError(f"nsjail could not be started: {error}") from error
        finally:
            theirs.close()
            os.close(text)
        jail_mark = ProcessMark.of(self._process.pid)
        self.record = self.record.model_copy(update={"jail": jail_mark})
        self._records.update(self.record)
        return streams

    @property
    def running(self) -> bool:
        return self._exited is not None and not self._exited.done()

    async def log(self) -> str:
        """Return what nsjail and the agent complained about, and how nsjail ended if it did."""
        if self._exited:
            await asyncio.wait([self._exited], timeout=LOG_PATIENCE)
        if self._log < 0:
            return ""
        text = os.pread(self._log, 1 << 16, 0).decode("utf-8", "replace").strip()[-1000:]
        code = self._process.poll() if self._process else None
        return text if code is None else f"{text} (nsjail: exit code {code})".lstrip()

    def counters(self) -> tuple[int, int]:
        """Return (processes killed for memory, processes refused), as far as anybody counts."""
        if self._last_counters is not None:
            return self._last_counters
        cgroup = self.record.cgroup
        return (cgroup.oom_kills(), cgroup.pids_hits()) if cgroup else (0, 0)

    def label(self, labels: Mapping[str, str]) -> None:
        """Note in the record whose jail it is now."""
        self.record = self.record.model_copy(update={"labels": dict(labels)})
        self._records.update(self.record)

    async def end(self) -> None:
        """Kill the jail and remove all traces. Never raises, takes at most 2.5 s; idempotent."""
        if self._log < 0:
            return
        # SIGTERM first: nsjail then kills the jail and waits until its last process is gone.
        if not await self._gone(signal.SIGTERM):
            await self._gone(signal.SIGKILL)
        self._last_counters = self.counters()
        cgroup = self.record.cgroup
        if cgroup is None or await cgroup.remove():
            self._records.remove(self.record)  # else it stays for the reaper of a later worker
        os.close(self._log)
        self._log = -1

    async def _gone(self, number: signal.Signals) -> bool:
        if self._process is None or self._exited is None:
            return True
        self._process.send_signal(number)
        done, _ = await asyncio.wait([self._exited], timeout=TERM_PATIENCE)
        return bool(done)


async def reap(record: Record, records: Records) -> bool:
    """End the jail of a dead owner; returns whether this call removed its record."""
    if record.jail:
        await record.jail.end(TERM_PATIENCE)
    if record.cgroup and not await record.cgroup.remove(TERM_PATIENCE):
        return False
    return records.remove(record)


@cache
def _launcher() -> str:
    return files("workers.sandboxes.nsjail").joinpath("launch.sh").read_text("utf-8")
