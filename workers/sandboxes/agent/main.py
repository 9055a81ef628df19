"""The agent as process 1 of a sandbox: serves one request after the other until its wire closes.

When the worker's end closes, or talks nonsense, or nobody renews its life in time, it exits, and
with process 1 the kernel ends everything in the sandbox.
"""

from __future__ import annotations

import os
import sys

from workers.sandboxes.agent.programs import Program, become
from workers.sandboxes.agent.serve import Agent, Wire

if __name__ == "__main__":
    if os.getpid() != 1:
        sys.exit("the agent kills every process it can reach: it runs as PID 1 of a sandbox only")
    program = None
    try:
        Agent(Wire(0, 1), alone=True, beat=float("inf")).serve()
    except Program as unwound:
        program = unwound
    # Outside of the handler: an error in the program must not claim to have come from another.
    if program is not None:
        become(program.code)
