"""The Python that runs inside the jails, and our agent compiled by it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from common.failures import ConfigurationError
from common.model import Contract
from workers.sandboxes.agent import source as agent_source

FOLDERS = (Path("/usr/bin"), Path("/usr/local/bin"))
"""Below what jails mount, and open to every user; a Python under /root is neither."""
COMPILE_TIMEOUT = 20.0
# Compiled once per worker instead of once per jail. The 16 bytes before the code are those of a
# .pyc file that is never compared with a source (PEP 552).
COMPILE = """
import sys, ctypes, json, marshal
from importlib.util import MAGIC_NUMBER
if sys.version_info < (3, 9):
    sys.exit("it is Python %d.%d" % sys.version_info[:2])
code = compile(sys.stdin.read(), "agent.py", "exec", dont_inherit=True, optimize=2)
out = sys.stdout.buffer
out.write(sys.version.split()[0].encode() + b"\\n")
out.write(MAGIC_NUMBER + bytes(12) + marshal.dumps(code))
"""


class Interpreter(Contract):
    """A Python that programs in a jail can reach."""

    path: Path
    version: str
    agent: bytes
    """Our agent, compiled by it."""


async def find(wanted: Path | None = None) -> Interpreter:
    """Return the first interpreter that works. Raises `ConfigurationError` saying what to do."""
    tried = []
    for path in [wanted] if wanted else _candidates():
        try:
            return await _compile(path)
        except (OSError, ValueError, TimeoutError) as error:
            tried.append(f"{path}: {error}")
    raise ConfigurationError(
        "sandboxes need a Python >= 3.9 with its standard library in /usr/bin or /usr/local/bin: "
        "apt-get install -y python3" + "".join(f"; {failure}" for failure in tried)
    )


def _candidates() -> Iterator[Path]:
    for folder in FOLDERS:
        if (folder / "python3").exists():
            yield folder / "python3"
    for folder in FOLDERS:
        yield from sorted(folder.glob("python3.[0-9]*[0-9]"), reverse=True)


async def _compile(path: Path) -> Interpreter:
    source = agent_source()
    process = await asyncio.create_subprocess_exec(
        path, "-I", "-S", "-c", COMPILE, env={},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(COMPILE_TIMEOUT):
            out, err = await process.communicate(source)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise ValueError(err.decode("utf-8", "replace").strip()[-300:])
    version, _, agent = out.partition(b"\n")
    return Interpreter(path=path, version=version.decode(), agent=agent)
