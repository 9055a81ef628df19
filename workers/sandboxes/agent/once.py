"""The agent for one request, where a server we do not own is process 1 and only runs commands.

Called with one argument: a file with two frames as process 1 would get them, the set-up and one
request; it is removed at once. The answer comes on stdout, in lines of base64: decoded one by one
and joined they are the frames that process 1 would send, with an empty piece of output every few
seconds while a program is silent. SIGTERM and SIGINT stop the program.

Set-up may name ``less``, a user and limits for programs, when the agent itself is root: then no
program can kill it, look into it, or write in its name.
"""

from __future__ import annotations

import base64
import os
import signal
import sys

from workers.sandboxes.agent.limits import PR_SET_CHILD_SUBREAPER, prctl
from workers.sandboxes.agent.programs import Program, become
from workers.sandboxes.agent.serve import Agent, Wire

LINE = 24 << 10  # bytes in one line: a multiple of 3, so that each decodes by itself
BEAT = 5.0  # seconds


class Lines(Wire):
    """Frames from a file, and to lines of text."""

    def __init__(self, path: str) -> None:
        super().__init__(os.open(path, os.O_RDONLY | os.O_CLOEXEC), 1)
        os.unlink(path)  # noqa: PTH108 - pathlib costs milliseconds of start

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), LINE):
            super().write(base64.b64encode(data[start : start + LINE]) + b"\n")


if __name__ == "__main__":
    # Orphans of the program become ours, so that nothing it leaves behind escapes.
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    program = None
    try:
        agent = Agent(Lines(sys.argv[1]), alone=False, beat=BEAT)
        signal.signal(signal.SIGTERM, agent.stop)
        signal.signal(signal.SIGINT, agent.stop)
        agent.serve(requests=1)
    except Program as unwound:
        program = unwound
    if program is not None:
        become(program.code)
