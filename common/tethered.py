"""Become another program that ends when its parent does: tethered.py PARENT_PID PROGRAM ARG...

Run as a plain script with `python -I -S`: it imports almost nothing, so it costs 20 ms.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, program = int(sys.argv[1]), sys.argv[2]
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it went before we asked
            sys.exit(1)
    os.execv(program, sys.argv[2:])  # noqa: S606 -- the caller's own choice of program
