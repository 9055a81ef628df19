"""The agent as process 1 of a sandbox: serves one request after the other until its wire closes.

A frame, either way: four bytes (big endian) with the length of a JSON object, the object, then
the byte strings whose lengths the object lists under ``raw``. Requests carry ``id`` and ``op``;
each gets exactly one reply with the same ``id``, in order, after any number of frames that carry
``stream`` and a piece of output. While a program runs, only ``cancel`` is acted on; other requests
wait. When the worker's end closes, or talks nonsense, or nobody renews its life in time, the agent
exits, and with process 1 the kernel ends everything in the sandbox.
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
from workers.sandboxes.agent.limits import PR_SET_DUMPABLE, prctl
from workers.sandboxes.agent.programs import WORK, Program, become, fork, spawn
from workers.sandboxes.agent.step import MEMORY_WATCH, Step, over, reason_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Request = dict[str, Any]

CONTROL = 10  # private descriptors start here, clear of the 0, 1, 2 that programs get
MAX_HEADER = 16 << 20


class Wire:
    """The two private descriptors to the worker."""

    def __init__(self) -> None:
        import fcntl

        self.source = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, CONTROL)
        self.sink = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, CONTROL)
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.close(null)
        self.waiting: list[tuple[Request, list[bytes]]] = []

    def receive(self) -> tuple[Request, list[bytes]]:
        """Return the next request; one that came while a program ran goes first."""
        return self.waiting.pop(0) if self.waiting else self.read()

    def read(self) -> tuple[Request, list[bytes]]:
        size = int.from_bytes(self._exactly(4), "big")
        if size > MAX_HEADER:
            os._exit(3)
        try:
            header = json.loads(self._exactly(size))
            lengths = [int(length) for length in header.get("raw", ())]
        except (ValueError, AttributeError, TypeError):
            os._exit(3)
        return header, [self._exactly(length) for length in lengths]

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            part = os.read(self.source, min(size, 1 << 20))
            if not part:
                os._exit(0)  # the worker is gone; so is this sandbox
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def send(self, reply: Request, *raw: bytes) -> None:
        reply["raw"] = [len(part) for part in raw]
        header = json.dumps(reply).encode("ascii")
        view = memoryview(b"".join((len(header).to_bytes(4, "big"), header, *raw)))
        while view:
            view = view[os.write(self.sink, view) :]


class Agent:
    """Takes one request after the other, for ever."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.source, self.send = self.wire.source, self.wire.send
        self.null = os.open("/dev/null", os.O_RDWR)
        # Python's own handler would make PID 1 die of a SIGINT that a program sends it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.children = Children(alone=True)
        setup, _ = self.wire.read()
        self.env: dict[str, str] = setup["env"]
        self.cpu = float(setup["cpu"])
        self.memory = int(setup["memory"])
        self.end = 0.0
        signal.signal(signal.SIGALRM, self._end_in_time)
        self._live_for(float(setup["ttl"]))
        sys.path += setup["packages"]
        os.environ.clear()
        os.environ.update(self.env)
        # Closes this process's memory, environment and descriptors to programs of the same user.
        prctl(PR_SET_DUMPABLE, 0)
        os.umask(0o022)
        os.chdir(WORK)
        self.send({"id": setup["id"], "pid": os.getpid(), "python": sys.version.split()[0]})

    def serve(self) -> NoReturn:
        import gc

        gc.freeze()  # keeps the collector from touching, and so copying, pages shared with forks
        while True:
            self._guard()
            request, raw = self.wire.receive()
            number = request.get("id")
            try:
                self.send(*self._answer(request, raw))
            except Refused as refusal:
                self.send({"id": number, "refused": str(refusal)})

    def _answer(self, request: Request, raw: list[bytes]) -> tuple[Any, ...]:
        """Return a reply and its byte strings."""
        op, reply = request.get("op"), {"id": request.get("id")}
        if op in ("exec", "python"):
            return self._program(request, raw)
        if op == "read":
            return reply, read_file(request["path"], request["limit"])
        if op == "write":
            write_file(request["path"], raw[0], request["mode"])
        elif op == "list":
            reply["entries"] = list_dir(request["path"])
        elif op == "renew":
            self._live_for(float(request["ttl"]))
        elif op not in ("ping", "cancel"):  # nothing we know
            os._exit(3)
        return (reply,)

    def _program(self, request: Request, raw: list[bytes]) -> tuple[Request, bytes, bytes]:
        self.children.expect(0)
        if request["op"] == "python":
            return Step(self, request, raw[0]).run(lambda *fds: fork(raw[1], fds))
        command = request["command"]
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        env = {**self.env, **request["env"]}
        if request.get("background"):
            return self._background(request["id"], argv, env, request["cwd"])
        return Step(self, request, raw[0]).run(lambda *fds: spawn(argv, env, request["cwd"], fds))

    def _background(
        self, number: int, argv: list[str], env: dict[str, str], cwd: str
    ) -> tuple[Request, bytes, bytes]:
        reply: Request = {"id": number, "status": "ok", "exit_code": None, "duration": 0.0}
        reply |= {"truncated": [False, False], "cpu": None, "peak": None}
        try:
            reply["log"] = start_in_background(self.children, argv, env, cwd)
        except (OSError, ValueError) as error:
            return {**reply, "status": "error"}, b"", reason_of(error).encode("utf-8", "replace")
        return reply, b"", b""

    def cancelled(self, number: int) -> bool:
        """Take one request while a program runs; say whether it stops that program."""
        request, raw = self.wire.read()
        if request.get("op") == "cancel":
            return bool(request.get("id") == number)
        self.wire.waiting.append((request, raw))
        return False

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


if __name__ == "__main__":
    if os.getpid() != 1:
        sys.exit("the agent kills every process it can reach: it runs as PID 1 of a sandbox only")
    program = None
    try:
        Agent().serve()
    except Program as unwound:
        program = unwound
    # Outside of the handler: an error in the program must not claim to have come from another.
    become(program.code)
