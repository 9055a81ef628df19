"""Requests from the worker, and their answers.

A frame, either way: four bytes (big endian) with the length of a JSON object, the object, then
the byte strings whose lengths the object lists under ``raw``. Requests carry ``id`` and ``op``;
each gets exactly one reply with the same ``id``, in order, after any number of frames that carry
``stream`` and a piece of output. While a program runs, only ``cancel`` is acted on; other requests
wait.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

from workers.sandboxes.agent.background import start_in_background
from workers.sandboxes.agent.children import Children
from workers.sandboxes.agent.files import Refused, list_dir, read_file, write_file
from workers.sandboxes.agent.limits import PR_SET_DUMPABLE, no_core_dumps, prctl
from workers.sandboxes.agent.programs import WORK, Privileges, fork, spawn
from workers.sandboxes.agent.spare import LARGEST, Spare
from workers.sandboxes.agent.step import MEMORY_WATCH, Step, over, reason_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Request = dict[str, Any]

CONTROL = 10  # private descriptors start here, clear of the 0, 1, 2 that programs get
MAX_HEADER = 16 << 20


def private(fd: int) -> int:
    """Move a descriptor to where no program gets it, and leave /dev/null for one of the first."""
    import fcntl

    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, CONTROL)
    if fd > 2:
        os.close(fd)
        return moved
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, fd)
    os.close(null)
    return moved


class Wire:
    """The two private descriptors to the worker."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = private(source), private(sink)
        self.waiting: list[tuple[Request, list[bytearray]]] = []

    def receive(self) -> tuple[Request, list[bytearray]]:
        """Return the next request; one that came while a program ran goes first."""
        return self.waiting.pop(0) if self.waiting else self.read()

    def read(self) -> tuple[Request, list[bytearray]]:
        size = int.from_bytes(self._exactly(4), "big")
        if size > MAX_HEADER:
            os._exit(3)
        try:
            header = json.loads(self._exactly(size))
            lengths = [int(length) for length in header.get("raw", ())]
        except (ValueError, AttributeError, TypeError):
            os._exit(3)
        return header, [self._exactly(length) for length in lengths]

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)  # filled in place: a file may be half of all memory there is
        view = memoryview(data)
        while view:
            got = os.readv(self.source, [view[: 1 << 20]])
            if not got:
                os._exit(0)  # the worker is gone; so is this sandbox
            view = view[got:]
        return data

    def send(self, reply: Request, *raw: bytes) -> None:
        reply["raw"] = [len(part) for part in raw]
        header = json.dumps(reply).encode("ascii")
        head = len(header).to_bytes(4, "big") + header
        # One write is quickest; but what is large shall not be in memory twice.
        small = sum(reply["raw"]) <= 1 << 20
        for part in [b"".join((head, *raw))] if small else [head, *raw]:
            self.write(part)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.sink, view) :]


class Agent:
    """Answers requests, one after the other."""

    def __init__(self, wire: Wire, *, alone: bool, beat: float) -> None:
        """``alone``: as process 1, with a worker that may say something at any time."""
        self.wire = wire
        self.source, self.send, self.beat = wire.source if alone else -1, wire.send, beat
        self.stopped = False
        self.null = os.open("/dev/null", os.O_RDWR)
        # Python's own handler would make PID 1 die of a SIGINT that a program sends it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.children = Children(alone)
        setup, _ = wire.read()
        self.env: dict[str, str] = setup["env"]
        self.cpu = float(setup["cpu"])
        self.memory = int(setup["memory"])
        self.spare: Spare | None = None
        self.want_spare = False
        self.less = Privileges(setup["less"]) if setup.get("less") else None
        self.children.less = self.less
        self.end = 0.0
        signal.signal(signal.SIGALRM, self._end_in_time)
        self._live_for(float(setup["ttl"]))
        os.environ.clear()
        os.environ.update(self.env)
        # Closes this process's memory, environment and descriptors to programs of the same user.
        prctl(PR_SET_DUMPABLE, 0)
        no_core_dumps()
        os.umask(0o022)
        os.chdir(WORK)
        self.send({"id": setup["id"], "pid": os.getpid(), "python": sys.version.split()[0]})

    def serve(self, requests: float = float("inf")) -> None:
        """Answer so many requests, or until the wire closes."""
        import gc

        gc.freeze()  # keeps the collector from touching, and so copying, pages shared with forks
        while requests > 0:
            requests -= 1
            if self.want_spare and not self.wire.waiting:
                self._make_spare()
            self._guard()
            request, raw = self.wire.receive()
            number = request.get("id")
            try:
                self.send(*self._answer(request, raw))
            except Refused as refusal:
                self.send({"id": number, "refused": str(refusal)})

    def _answer(self, request: Request, raw: list[bytearray]) -> tuple[Any, ...]:
        """Return a reply and its byte strings."""
        op, reply = request.get("op"), {"id": request.get("id")}
        if op in ("exec", "python"):
            return self._program(request, raw)
        if self.less is not None and not self.children.alone:
            self.less.drop()  # for good: this one request is all we do
        if op in ("read", "write", "list"):
            try:
                return self._file(request, raw, reply)
            except (OSError, MemoryError, ValueError, RecursionError) as error:
                raise Refused(f"{request['path'][:200]}: {error}") from None
        if op == "clear":
            self._drop_spare()
            self.children.kill_all()
        elif op == "renew":
            self._live_for(float(request["ttl"]))
        elif op not in ("ping", "cancel"):  # nothing we know
            os._exit(3)
        return (reply,)

    def _file(self, request: Request, raw: list[bytearray], reply: Request) -> tuple[Any, ...]:
        if request["op"] == "read":
            return reply, read_file(request["path"], request["limit"])
        if request["op"] == "write":
            write_file(request["path"], raw[0], request["mode"])
        else:
            reply["entries"] = list_dir(request["path"])
        return (reply,)

    def _program(self, request: Request, raw: list[bytearray]) -> tuple[Request, bytes, bytes]:
        self.children.expect(0)
        try:
            return self._step(request, raw)
        except OSError as error:  # not even pipes can be had
            return not_started(request["id"], error)

    def _step(self, request: Request, raw: list[bytearray]) -> tuple[Request, bytes, bytes]:
        if request["op"] == "python":
            return self._python(request, *raw)
        self._drop_spare()  # it would count among the program's processes
        command = request["command"]
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        env = {**self.env, **request["env"]}
        if request.get("background"):
            return self._background(request["id"], argv, env, request["cwd"])
        return Step(self, request, raw[0]).run(
            lambda *fds: spawn(
                argv, env, request["cwd"], fds, self.less, careful=bool(self.children.keepers)
            )
        )

    def _python(
        self, request: Request, stdin: bytearray, code: bytearray
    ) -> tuple[Request, bytes, bytes]:
        """Run a program in a copy of this interpreter; the next one is likely Python too."""
        self.want_spare = self.children.alone
        spare = self.spare
        if spare is None or len(code) > LARGEST or not spare.alive():
            self._drop_spare()
            return Step(self, request, stdin).run(lambda *fds: fork(code, fds, self.less))
        self.spare = None
        return Step(self, request, stdin, spare.pipes).run(lambda *_: spare.start(code))

    def _make_spare(self) -> None:
        self.want_spare = False
        if self.spare is None and not self.children.keepers:
            try:
                self.spare = Spare(self.less)
            except OSError:
                return  # programs are started without one

    def _drop_spare(self) -> None:
        if self.spare is not None:
            self.spare.drop()
            self.spare = None

    def _background(
        self, number: int, argv: list[str], env: dict[str, str], cwd: str
    ) -> tuple[Request, bytes, bytes]:
        try:
            log = start_in_background(self.children, argv, env, cwd, self.less)
        except (OSError, ValueError) as error:
            return not_started(number, error)
        return {**nothing_yet(number), "status": "ok", "log": log}, b"", b""

    def cancelled(self, number: int) -> bool:
        """Take one request while a program runs; say whether it stops that program."""
        request, raw = self.wire.read()
        if request.get("op") == "cancel":
            return bool(request.get("id") == number)
        self.wire.waiting.append((request, raw))
        return False

    def stop(self, *_: object) -> None:
        """A signal says that nobody wants the result any more."""
        self.stopped = True

    def _guard(self) -> None:
        """Until a request comes, keep programs in the background within the memory limit."""
        if not self.memory or self.wire.waiting:
            return
        poll = select.poll()
        poll.register(self.source, select.POLLIN)
        while self.children.keepers and not poll.poll(MEMORY_WATCH * 4000):
            self.children.reap()
            if over(self.memory):
                self.children.kill_all()

    def _live_for(self, ttl: float) -> None:
        self.end = time.monotonic() + ttl
        signal.setitimer(signal.ITIMER_REAL, ttl + 0.01)

    def _end_in_time(self, *_: object) -> None:
        """Exit when our time is over; programs may send this signal too, and earlier."""
        if time.monotonic() >= self.end:
            os._exit(6)


def nothing_yet(number: int) -> Request:
    """Return what can be said of a program before it has done anything."""
    reply: Request = {"id": number, "exit_code": None, "truncated": [False, False]}
    return {**reply, "duration": 0.0, "cpu": None, "peak": None}


def not_started(number: int, error: Exception) -> tuple[Request, bytes, bytes]:
    """Return the reply for a program that cannot be started."""
    reason = reason_of(error).encode("utf-8", "replace")
    return {**nothing_yet(number), "status": "error"}, b"", reason
