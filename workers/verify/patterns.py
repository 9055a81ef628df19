"""Match the task's regular expressions against text that an agent wrote, with an end to it.

A pattern such as ``(a+)+$`` takes for ever on the right text, and while `re` runs it holds the
interpreter: no thread and no `asyncio.timeout` could stop it. So whatever may backtrack runs in a
process of its own, which the kernel ends after a fixed amount of processor time. Time on the
processor, not on the clock: a busy host must not change a verdict.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys

from common.failures import FleetError

CPU_SECONDS = 5
WALL_SECONDS = 60.0
TEXT_LIMIT = 2 << 20
"""Characters. Above the output cap of a sandbox, below what would fill the worker's memory."""

_MAY_BACKTRACK = frozenset("*+?{|")
_TOO_MUCH = "too much"
_MATCHER = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1]) + 1))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
pattern, flags, whole, text = json.load(sys.stdin)
compiled = re.compile(pattern, flags)
try:
    found = compiled.fullmatch(text) if whole else compiled.search(text)
    print("yes" if found else "no")
except (MemoryError, RecursionError):
    print("too much")
"""


class PatternTooSlow(Exception):
    """The pattern needs more time on this text than it may have."""


def flaw(pattern: str) -> str | None:
    """Return why ``pattern`` is no regular expression, or None."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"not a regular expression: {error}"
    return None


async def matches(
    pattern: str, text: str, *, whole: bool = False, ignore_case: bool = False
) -> bool:
    """Say whether ``pattern`` is found in ``text``, or, if ``whole``, describes all of it.

    Searching, `^` and `$` match at every line; describing the whole, `.` matches line ends too.
    Raises `PatternTooSlow` after `CPU_SECONDS`, and for texts above `TEXT_LIMIT`.
    """
    if len(text) > TEXT_LIMIT:
        raise PatternTooSlow(f"{len(text)} characters are too many for a regular expression")
    flags = re.DOTALL if whole else re.MULTILINE
    if ignore_case:
        flags |= re.IGNORECASE
    if _MAY_BACKTRACK.isdisjoint(pattern):
        compiled = re.compile(pattern, flags)
        return bool(compiled.fullmatch(text) if whole else compiled.search(text))
    return await _matches_apart(json.dumps([pattern, int(flags), whole, text]).encode())


async def _matches_apart(request: bytes) -> bool:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-I", "-S", "-c", _MATCHER, str(CPU_SECONDS)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
    )
    try:
        async with asyncio.timeout(WALL_SECONDS):
            reply, _ = await process.communicate(request)
    except TimeoutError:
        raise FleetError(f"matching a pattern got no processor in {WALL_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    word = reply.decode().strip()
    if process.returncode == -signal.SIGXCPU or word == _TOO_MUCH:
        raise PatternTooSlow(f"the pattern needs more than {CPU_SECONDS} s on this text")
    if word not in ("yes", "no"):
        raise FleetError(f"the pattern matcher ended with {process.returncode} and no answer")
    return word == "yes"
