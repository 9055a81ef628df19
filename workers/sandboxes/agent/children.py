"""Every process below the agent: buried when it ends, killed when its step is over."""

from __future__ import annotations

import os
import select
import signal
import time

from workers.sandboxes.agent.programs import Privileges

CHUNK = 1 << 16
KILL_GRACE = 2.0  # seconds killed processes get to be gone
HUNT_GRACE = 1.0  # seconds to kill them one by one, where some are to be spared
OUR_CHILDREN = "/proc/thread-self/children"


class Children:
    """All processes that are or become ours: orphans too, and what they all used."""

    def __init__(self, alone: bool) -> None:
        """``alone``: as process 1, everything else there is belongs to us."""
        self.alone = alone
        self.wake, wake_write = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        self.less: Privileges | None = None  # what programs lose, where we are another user
        self.keepers: set[int] = set()  # those that hold programs in the background
        self.main = 0
        self.status: int | None = None
        self.main_cpu = self.cpu = 0.0
        self.peak = 0

    def expect(self, main: int) -> None:
        self.main, self.status, self.main_cpu, self.cpu, self.peak = main, None, 0.0, 0.0, 0

    def reap(self) -> bool:
        """Collect who ended. Returns whether any process is left."""
        try:  # noqa: SIM105 - contextlib costs a millisecond of start
            os.read(self.wake, CHUNK)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid in self.keepers:
                self.keepers.discard(pid)
                continue
            self.cpu += used.ru_utime + used.ru_stime
            self.peak = max(self.peak, used.ru_maxrss * 1024)
            if pid == self.main:
                self.status = status
                self.main_cpu = used.ru_utime + used.ru_stime

    def clear(self) -> None:
        """End every process but this one and those in the background; wait until they are gone."""
        if self.alone and not self.keepers:
            self.kill_all()
            return
        deadline = time.monotonic() + HUNT_GRACE
        while True:
            # Whose parent ends becomes our child, so all of them turn up here sooner or later.
            self.reap()
            strays = [pid for pid in _children() if pid not in self.keepers]
            if not strays:
                return
            if time.monotonic() > deadline:
                break  # they multiply faster than they die
            for pid in strays:
                _kill(pid)
            self._pause()
        if self.alone:
            self.kill_all()
        else:
            self._kill_all_of_theirs()

    def kill_all(self) -> None:
        """End every other process there is that we may end, at once.

        Where we are not process 1, this is for a user whose processes all belong to programs.
        """
        self.keepers.clear()
        deadline = time.monotonic() + KILL_GRACE
        while True:
            _kill(-1)
            if not self.reap():
                return
            if time.monotonic() > deadline:
                os._exit(4)  # something cannot be killed: nothing after it could be trusted
            self._pause()

    def _kill_all_of_theirs(self) -> None:
        """End every process of the user that programs are, at once; those in the background too."""
        if self.less is None:
            os._exit(4)  # they may be anybody's
        deadline = time.monotonic() + KILL_GRACE
        while True:
            pid = os.fork()
            if pid == 0:
                try:
                    self.less.drop()
                    _kill(-1)
                finally:
                    os._exit(0)
            self.reap()
            if not _children():
                return
            if time.monotonic() > deadline:
                os._exit(4)
            self._pause()

    def _pause(self) -> None:
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        poll.poll(50)


def _children() -> list[int]:
    with open(OUR_CHILDREN, "rb") as pids:  # noqa: PTH123
        return [int(pid) for pid in pids.read().split()]


def _kill(pid: int) -> None:
    try:  # noqa: SIM105
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # the latter: of all there is, nothing is ours
        pass
