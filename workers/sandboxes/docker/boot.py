"""What a container's Python is told to run: it takes the agent from the wire and becomes it.

Given as ``python3 -c``, so nothing of ours has to lie in an image or be mounted into one. It reads
byte by byte what it needs and no more: what follows is the agent's own.
"""

import os
import sys

if sys.version_info < (3, 9):  # noqa: UP036 - images bring the Python they like
    print("boot: this is Python", sys.version, file=sys.stderr)  # noqa: T201
    os._exit(91)


def take(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            os._exit(0)  # the worker changed its mind
        data += part
    return data


code = take(int.from_bytes(take(4), "big"))
exec(compile(code, "agent.py", "exec", 0, True))  # noqa: S102
