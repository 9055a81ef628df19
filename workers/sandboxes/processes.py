"""Which process is meant: a pid alone is reused, a pid with its start time is not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path

from common.model import Contract


def burial(process: subprocess.Popen[bytes]) -> asyncio.Future[None]:
    """Return a future that is done once a child has ended and is buried."""
    loop = asyncio.get_running_loop()
    exited = loop.create_future()
    descriptor = os.pidfd_open(process.pid)

    def bury() -> None:
        process.poll()
        loop.remove_reader(descriptor)
        os.close(descriptor)
        exited.set_result(None)

    loop.add_reader(descriptor, bury)
    return exited


class ProcessMark(Contract):
    """One process of this host, recognisable after its death."""

    pid: int
    started: int
    """Clock ticks between the start of the machine and that of the process."""

    @classmethod
    def of(cls, pid: int) -> ProcessMark | None:
        """Return the mark of a live process; a zombie is not alive."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        except OSError:
            return None
        # The name, in parentheses, may hold anything; fields count from what follows it.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid=pid, started=int(fields[19]))

    @classmethod
    def own(cls) -> ProcessMark:
        mark = cls.of(os.getpid())
        assert mark is not None
        return mark

    def alive(self) -> bool:
        return ProcessMark.of(self.pid) == self

    def send(self, number: signal.Signals) -> None:
        """Signal this very process; another one that got its pid is never hit."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)

    async def end(self, patience: float) -> bool:
        """Ask it to end, then make it; returns whether it is gone. At most twice ``patience``."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.send(number)
            deadline = time.monotonic() + patience
            while self.alive() and time.monotonic() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # not our child: nothing to await
        return not self.alive()
