"""One program, from its start until nothing of it is left."""

from __future__ import annotations

import os
import select
import signal
import time

from workers.sandboxes.agent.children import CHUNK, Children
from workers.sandboxes.agent.limits import counted, memory_in_use

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    Request = dict[str, Any]
    Start = Callable[..., int]

    class Host(Protocol):
        """What a step needs from the agent it runs in."""

        children: Children
        null: int
        cpu: float  # seconds each process may use
        memory: int  # bytes all may use together; 0: a cgroup sees to that
        source: int  # descriptor on which a request to stop may come; -1: none does
        stopped: bool  # a signal told us to stop the program
        beat: float  # seconds after which a word is due though there is no output

        def cancelled(self, number: int) -> bool: ...

        def send(self, reply: Request, *raw: bytes) -> None: ...


MEMORY_WATCH = 0.025  # seconds between two looks at the memory in use, where no cgroup limits it


class Output:
    """One output stream of a program, kept up to a cap."""

    def __init__(self) -> None:
        self.fd, self.theirs = os.pipe()
        os.set_blocking(self.fd, False)
        self.cap = 0
        self.kept = bytearray()
        self.truncated = False
        self.sent = 0

    def take(self) -> bool:
        """Read what is there now. Returns False at the end of the stream."""
        while True:
            try:
                part = os.read(self.fd, CHUNK)
            except BlockingIOError:
                return True
            if not part:
                return False
            room = self.cap - len(self.kept)
            self.kept += part[:room]
            if len(part) > room:
                self.truncated = True
                return True

    def fresh(self) -> bytes:
        """Return what was not returned before."""
        part = bytes(self.kept[self.sent :])
        self.sent += len(part)
        return part


class Pipes:
    """The three streams of a program."""

    def __init__(self, stdin: bool) -> None:
        """``stdin``: whether there may be any input."""
        theirs, self.stdin = os.pipe() if stdin else (os.open("/dev/null", os.O_RDONLY), -1)
        self.out, self.err = Output(), Output()
        self.theirs: tuple[int, ...] = (theirs, self.out.theirs, self.err.theirs)

    def close_theirs(self) -> None:
        for fd in self.theirs:
            os.close(fd)
        self.theirs = ()

    def close(self) -> None:
        self.close_theirs()
        for fd in (self.stdin, self.out.fd, self.err.fd):
            if fd >= 0:
                os.close(fd)


class Step:
    """Runs one program for a request."""

    def __init__(
        self, host: Host, request: Request, stdin: bytearray, pipes: Pipes | None = None
    ) -> None:
        """``pipes`` are those of a program that waits already."""
        self.host = host
        self.number = request["id"]
        self.timeout = float(request["timeout"])
        self.streaming = bool(request.get("stream"))
        self.pipes = pipes or Pipes(stdin=bool(stdin))
        self.out, self.err = self.pipes.out, self.pipes.err
        self.out.cap = self.err.cap = int(request["cap"])
        self.stdin = memoryview(stdin)
        self.poll = select.poll()
        self.memory_check = 0.0

    def run(self, start: Start) -> tuple[Request, bytes, bytes]:
        """Return the reply, and what of both streams was not sent before it."""
        children, began = self.host.children, time.monotonic()
        before = counted()
        try:
            children.expect(start(*self.pipes.theirs))
        except (OSError, ValueError) as error:
            reason, status = reason_of(error), "error"
            self.err.kept += reason.encode("utf-8", "replace")
        else:
            status = ""
        # `Program` passes through above in the child; everything below is the agent's alone.
        self.pipes.close_theirs()
        if not status:
            status = self._watch(self.pipes.stdin, began + self.timeout)
            children.clear()
            for stream in (self.out, self.err):
                stream.take()
            status = status or self._verdict(before)
        self.pipes.close()
        reply = self._reply(status, time.monotonic() - began)
        return reply, self.out.fresh(), self.err.fresh()

    def _watch(self, stdin: int, deadline: float) -> str:
        """Feed and listen until the program ends ("") or must be stopped (why)."""
        children, poll, source = self.host.children, self.poll, self.host.source
        streams = {self.out.fd: self.out, self.err.fd: self.err}
        for fd in (source, children.wake, *streams):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        if stdin >= 0 and self.stdin:
            os.set_blocking(stdin, False)
            poll.register(stdin, select.POLLOUT)
        elif stdin >= 0:
            self._end_of_input(stdin)
        pause = MEMORY_WATCH if self.host.memory else self.host.beat
        next_beat = time.monotonic() + self.host.beat
        while True:
            now = time.monotonic()
            if now >= deadline:
                return "timeout"
            if now >= next_beat:
                self.host.send({"id": self.number, "stream": "stdout"}, b"")
                next_beat = now + self.host.beat
            if self.host.memory and self._too_much_memory(now):
                return "oom"
            for fd, _ in poll.poll(max(1.0, min(deadline - now, pause) * 1000)):
                if fd in streams:
                    if not streams[fd].take():
                        poll.unregister(fd)
                    self._tell(streams[fd])
                elif fd == stdin:
                    self._feed(stdin)
                elif fd == source and self.host.cancelled(self.number):
                    return "killed"
            if self.out.truncated or self.err.truncated:
                return "output_limit"
            if self.host.stopped:
                return "killed"
            children.reap()
            if children.status is not None:
                return ""

    def _tell(self, stream: Output) -> None:
        if self.streaming and len(stream.kept) > stream.sent:
            which = "stdout" if stream is self.out else "stderr"
            self.host.send({"id": self.number, "stream": which}, stream.fresh())

    def _feed(self, stdin: int) -> None:
        try:
            self.stdin = self.stdin[os.write(stdin, self.stdin[:CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self.stdin = self.stdin[:0]
        if not self.stdin:
            self.poll.unregister(stdin)
            self._end_of_input(stdin)

    def _end_of_input(self, stdin: int) -> None:
        """Close the pipe, so that the program sees it; the number stays ours."""
        os.dup2(self.host.null, stdin, inheritable=False)

    def _too_much_memory(self, now: float) -> bool:
        if now < self.memory_check:
            return False
        too_much = over(self.host.memory)
        self.memory_check = now + max(MEMORY_WATCH, 10 * (time.monotonic() - now))
        return too_much

    def _verdict(self, before: tuple[int, int]) -> str:
        if self.out.truncated or self.err.truncated:
            return "output_limit"
        status = self.host.children.status or 0
        if status == 0:
            return "ok"
        out_of_memory, refused = counted()
        if out_of_memory > before[0]:
            return "oom"
        if os.WIFSIGNALED(status):
            spent = self.host.children.main_cpu >= self.host.cpu - 0.5
            if spent and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU):
                return "timeout"
        if refused > before[1]:
            return "pids_limit"
        return "killed" if os.WIFSIGNALED(status) else "error"

    def _reply(self, status: str, duration: float) -> Request:
        children = self.host.children
        started = children.status is not None
        return {
            "id": self.number,
            "status": status,
            "exit_code": exit_code_of(children.status or 0) if started else None,
            "truncated": [self.out.truncated, self.err.truncated],
            "duration": duration,
            "cpu": children.cpu if started else None,
            "peak": children.peak if started else None,
        }


def over(memory: int) -> bool:
    """Say whether programs use more than so many bytes together."""
    # Pages shared after a fork are counted once for each at first; look closely before killing.
    return memory_in_use(exact=False) > memory and memory_in_use(exact=True) > memory


def reason_of(error: Exception) -> str:
    """Say why a program could not be started."""
    if not isinstance(error, OSError):
        return str(error)
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if isinstance(error.filename, str) else reason


def exit_code_of(status: int) -> int:
    """Return what a shell would call the exit code."""
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)
    return os.WEXITSTATUS(status)
