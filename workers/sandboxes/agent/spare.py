"""A copy of the interpreter made ahead of time, while the agent would only wait.

Making one costs some milliseconds, most of them for pages that the copy touches first; a spare has
touched them when its program comes.
"""

from __future__ import annotations

import os
import signal

from workers.sandboxes.agent.limits import PR_SET_DUMPABLE, prctl
from workers.sandboxes.agent.programs import Privileges, Program, become_programs_process
from workers.sandboxes.agent.step import Pipes

LARGEST = 32 << 10  # bytes of code: what a pipe takes at once, so that handing over never waits


class Spare:
    """Waits for one Python program, and becomes it."""

    def __init__(self, less: Privileges | None) -> None:
        """Fork. Raises `OSError` when that cannot be."""
        self.pipes = Pipes(stdin=True)
        # Not a file in memory: where no control group counts those, jails can have none.
        go, self.go = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(go)
            self._close()
            self.pipes.close()
            raise
        if self.pid == 0:
            become_programs_process(self.pipes.theirs, less, go)
            exec(compile("pass", "<warm>", "exec"), {})  # noqa: S102
            parts = []
            while part := os.read(go, LARGEST):
                parts.append(part)
            if not parts:
                os._exit(0)
            source = b"".join(parts)[1:]
            os.close(go)
            prctl(PR_SET_DUMPABLE, 1)  # or the program could not read its own /proc/self
            raise Program(source)
        os.close(go)
        self.pipes.close_theirs()

    def start(self, code: bytes | bytearray) -> int:
        """Let it run the program; returns its pid."""
        os.write(self.go, b"!" + code)  # a program may be empty; nothing at all means to go
        self._close()
        return self.pid

    def alive(self) -> bool:
        """Say whether it still waits; a program in the background may have killed it."""
        try:
            return os.waitpid(self.pid, os.WNOHANG)[0] == 0
        except ChildProcessError:
            return False

    def drop(self) -> None:
        """End it unused."""
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._close()
        self.pipes.close()

    def _close(self) -> None:
        os.close(self.go)
