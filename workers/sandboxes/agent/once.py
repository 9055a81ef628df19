"""The agent for one step, where a server we do not own is process 1 and only runs commands.

Called as ``python3 -I -c SOURCE REQUEST``: nothing of it lies on a disk where a program could
change it. REQUEST is the JSON object that process 1 would get, with ``env``, ``cpu`` and
``memory`` in it; byte strings lie in the files listed under ``files``, which are removed at once.
The reply comes on stdout, each frame a line: base64 of a JSON object, which has a piece of output
in base64 under ``data`` where it has a ``stream``. The last line is the reply.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys

from workers.sandboxes.agent.background import start_in_background
from workers.sandboxes.agent.children import Children
from workers.sandboxes.agent.files import Refused, list_dir, read_file, write_file
from workers.sandboxes.agent.limits import PR_SET_CHILD_SUBREAPER, PR_SET_DUMPABLE, prctl
from workers.sandboxes.agent.programs import WORK, Program, become, fork, spawn
from workers.sandboxes.agent.step import Step, reason_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Request = dict[str, Any]

PIECE = 24 << 10  # bytes of output in one line


class Once:
    """Serves one request."""

    def __init__(self, request: Request) -> None:
        import fcntl

        self.request = request
        self.sink = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, 10)
        self.null = os.open("/dev/null", os.O_RDWR)
        os.dup2(self.null, 0)
        os.dup2(self.null, 1)
        self.source = -1
        self.cpu = float(request.get("cpu", 0) or float("inf"))
        self.memory = int(request.get("memory", 0))
        self.children = Children(alone=False)
        # Orphans of the program become ours, so that nothing it leaves behind escapes.
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        # Closes our descriptors to programs of the same user: none can write a reply for us.
        prctl(PR_SET_DUMPABLE, 0)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        os.environ.clear()
        os.environ.update(request["env"])
        os.umask(0o022)
        os.chdir(WORK)

    def serve(self) -> None:
        number = self.request["id"]
        try:
            raw = [_taken(path) for path in self.request.get("files", ())]
            self._answer(raw)
        except Refused as refusal:
            self._line({"id": number, "refused": str(refusal)})

    def _answer(self, raw: list[bytes]) -> None:
        request = self.request
        op, reply = request["op"], {"id": request["id"]}
        if op in ("exec", "python"):
            self._program(raw)
            return
        if op == "read":
            self.send({**reply, "stream": "stdout"}, read_file(request["path"], request["limit"]))
        elif op == "write":
            write_file(request["path"], raw[0], request["mode"])
        elif op == "list":
            reply["entries"] = list_dir(request["path"])
        self._line(reply)

    def _program(self, raw: list[bytes]) -> None:
        request = self.request
        env, cwd = request["env"], request.get("cwd", WORK)
        command = request.get("command", [])
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        if request.get("background"):
            self._background(argv, env, cwd)
            return
        step = Step(self, {**request, "stream": True}, raw[0])
        if request["op"] == "python":
            reply, out, err = step.run(lambda *fds: fork(raw[1], fds))
        else:
            reply, out, err = step.run(lambda *fds: spawn(argv, env, cwd, fds))
        self.send({"id": request["id"], "stream": "stdout"}, out)
        self.send({"id": request["id"], "stream": "stderr"}, err)
        self._line(reply)

    def _background(self, argv: list[str], env: dict[str, str], cwd: str) -> None:
        reply: Request = {"id": self.request["id"], "status": "ok", "exit_code": None}
        reply |= {"truncated": [False, False], "duration": 0.0, "cpu": None, "peak": None}
        try:
            reply["log"] = start_in_background(self.children, argv, env, cwd)
        except (OSError, ValueError) as error:
            reason = reason_of(error).encode("utf-8", "replace")
            self.send({"id": reply["id"], "stream": "stderr"}, reason)
            reply["status"] = "error"
        self._line(reply)

    def cancelled(self, number: int) -> bool:
        return False

    def send(self, reply: Request, *raw: bytes) -> None:
        """Send output in pieces that fit a line."""
        for part in raw:
            for start in range(0, len(part), PIECE):
                piece = part[start : start + PIECE]
                self._line({**reply, "data": base64.b64encode(piece).decode("ascii")})

    def _line(self, reply: Request) -> None:
        view = memoryview(base64.b64encode(json.dumps(reply).encode("ascii")) + b"\n")
        while view:
            view = view[os.write(self.sink, view) :]

    def _stop(self, *_: object) -> None:
        """Whoever started us gave up: end what we started, then ourselves."""
        self.children.clear()
        os._exit(128 + signal.SIGTERM)


def _taken(path: str) -> bytes:
    try:
        return read_file(path, 1 << 30)
    finally:
        try:  # noqa: SIM105
            os.unlink(path)  # noqa: PTH108
        except OSError:
            pass


if __name__ == "__main__":
    program = None
    try:
        Once(json.loads(sys.argv[1])).serve()
    except Program as unwound:
        program = unwound
    if program is not None:
        become(program.code)
