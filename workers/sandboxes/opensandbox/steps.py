"""Requests to the agent inside, one command of the server's execd for each.

execd has no input, no caps and no idea of what a program leaves behind. So a request travels as
files, a program of ours (inside.py) carries it out with the agent's code, and the replies come
back as lines of its output. What those lines say is written next to hostile programs: sizes are
bounded, and anything that is no proper reply means that the sandbox is lost.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count, pairwise
from typing import Any

from opensandbox import Sandbox
from opensandbox.exceptions import SandboxApiException, SandboxException
from opensandbox.models.execd import ExecutionHandlers, ExecutionInit, OutputMessage
from opensandbox.models.filesystem import WriteEntry
from pydantic import JsonValue

from workers.sandboxes.agent.limits import OOM_KILLS
from workers.sandboxes.channel import MAX_HEADER, MAX_PARTS, OnPiece, Reply, unless_refused
from workers.sandboxes.protocol import SandboxLost

SILENCE = 30.0
"""Seconds without a line from inside before the sandbox counts as dead; it says one each 5."""
INTERRUPT_PATIENCE = 5.0
"""Seconds to tell execd that a command is to end. The next step waits for that inside, too."""
MAX_COMPLAINT = 2000
NONSENSE = (
    ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError,
)  # fmt: skip
"""What reading a reply raises that no agent of ours has written."""
PYTHON = 'exec env -i PATH="$PATH" python3'
"""What execd knows from its environment, its own key above all, is none of a program's business."""


class Steps:
    """A channel to the agent: the same calls as `channel.Channel` has, carried by execd."""

    def __init__(
        self, sandbox: Sandbox, folder: str, less: Mapping[str, JsonValue], *, max_raw: int
    ) -> None:
        """``less``: what programs may do, where the agent may do more (agent/once.py)."""
        self.lost: str | None = None
        """Why there will be no more replies."""
        self._sandbox = sandbox
        self._folder = folder
        self._setup: dict[str, Any] = {"id": 0, "op": "setup", "less": less}
        self._max_raw = max_raw
        self._numbers = count(1)
        self._turn = asyncio.Lock()
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ended_silently = False

    @property
    def busy(self) -> bool:
        return self._turn.locked()

    async def call(
        self,
        op: str,
        *raw: bytes,
        patience: float,
        on_piece: OnPiece | None = None,
        **fields: Any,
    ) -> Reply:
        """Send one request and return its reply; ``on_piece`` gets what comes before it.

        A cancelled call stops what it started; the sandbox stays usable. Raises `SandboxLost`
        when there is no reply within ``patience`` seconds, `SandboxPathError` for a refused path.
        """
        async with self._turn:
            if self.lost:
                raise SandboxLost(self.lost)
            try:
                async with asyncio.timeout(patience):
                    reply = await self._answer(op, raw, patience, on_piece, fields)
            except TimeoutError:
                self.fail(f"it did not answer {op!r} within {patience:g} s")
                raise SandboxLost(str(self.lost)) from None
            except SandboxLost as lost:
                self.fail(str(lost))
                raise
        return unless_refused(reply)

    def fail(self, reason: str) -> None:
        """Give up on the sandbox; whoever waits for a reply gets `SandboxLost`."""
        self.lost = self.lost or reason
        if not self._gone.done():
            self._gone.set_result(None)

    async def close(self) -> None:
        self.fail("it is closed")

    async def ran_out_of_memory(self) -> bool:
        """Say whether the last step has no reply because what carried it out was killed so."""
        if not self._ended_silently:
            return False
        # Each step first notes what was counted before it (inside.py).
        files = " ".join((f"{self._folder}/oom", *OOM_KILLS))
        try:
            line, _ = await ask(self._sandbox, f"echo $(cat {files} 2>/dev/null)")
        except SandboxLost:
            return False
        words = line.split()
        counts = [int(n) for k, n in pairwise(words) if k == "oom_kill" and n.isdigit()]
        return len(counts) > 1 and counts[-1] > counts[0]

    async def _answer(
        self,
        op: str,
        raw: Sequence[bytes],
        patience: float,
        on_piece: OnPiece | None,
        fields: dict[str, Any],
    ) -> Reply:
        if op == "setup":
            self._setup |= fields
        elif op == "ping":
            if not await self._sandbox.is_healthy():
                raise SandboxLost("its execd does not answer")
        elif op != "renew":  # the worker's business alone: nothing inside ends by itself
            number = next(self._numbers)
            request = f"{self._folder}/{number}"
            await upload(self._sandbox, {
                request: frame({**self._setup, "ttl": patience + INTERRUPT_PATIENCE})
                + frame({**fields, "id": number, "op": op}, *raw)
            })  # fmt: skip
            said = Heard(number, self._max_raw, on_piece)
            # What an image has installed is of use to Python programs only, and slow to look up.
            options = "-I -B" if op == "python" else "-I -S -B"
            command = f"{PYTHON} {options} {self._folder}/inside.py step {number}"
            await self._run(command, said)
            return said.reply.result()
        return Reply({}, [])

    async def _run(self, command: str, said: Heard) -> None:
        """Run a command until it has said its reply, or nobody can say one any more."""
        running = asyncio.create_task(run(self._sandbox, command, said), name=command)
        waiting: set[asyncio.Future[Any]] = {running, said.reply, self._gone}
        try:
            while not said.reply.done():
                said.heard.clear()
                await asyncio.wait(waiting, timeout=SILENCE, return_when=asyncio.FIRST_COMPLETED)
                if self.lost:
                    raise SandboxLost(self.lost)
                if running.done() and not said.reply.done():
                    self._ended_silently = running.exception() is None
                    raise SandboxLost(_end_without_reply(running, said))
                if not said.heard.is_set():
                    raise SandboxLost(f"nothing was heard from it for {SILENCE:g} s")
        except asyncio.CancelledError:
            await self._interrupt(running, said)
            raise
        finally:
            # execd keeps the stream open for a second after the end; nobody needs to wait for it.
            await _stop(running)

    async def _interrupt(self, running: asyncio.Task[None], said: Heard) -> None:
        """Stop a command that nobody waits for any more."""
        running.cancel()
        if said.command is not None:
            with suppress(SandboxException, TimeoutError):
                async with asyncio.timeout(INTERRUPT_PATIENCE):
                    await self._sandbox.commands.interrupt(said.command)


class Heard:
    """What one command said so far: frames, as the agent would write them to a pipe."""

    def __init__(self, number: int, max_raw: int, on_piece: OnPiece | None) -> None:
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.heard = asyncio.Event()
        self.complaint = ""
        self.command: str | None = None
        """execd's name for it."""
        self.written = 0
        """Bytes of the program's output that came before the reply."""
        self._number = number
        self._max_raw = max_raw
        self._on_piece = on_piece
        self._bytes = bytearray()
        self._header: tuple[int, Any, list[int]] | None = None

    async def begun(self, event: ExecutionInit) -> None:
        self.command = event.id or None

    async def line(self, message: OutputMessage) -> None:
        """Take a line of output: some bytes in base64."""
        self.heard.set()
        if self.reply.done():
            return
        try:
            self._bytes += base64.b64decode(message.text.strip(), validate=True)
            while not self.reply.done() and (one := self._frame()) is not None:
                self._take(one)
        except NONSENSE as error:
            reason = f"it sent no proper reply ({type(error).__name__}: {error})"
            self.reply.set_exception(SandboxLost(reason))

    async def complain(self, message: OutputMessage) -> None:
        self.heard.set()
        self.complaint = f"{self.complaint}{message.text}\n"[-MAX_COMPLAINT:]

    def _frame(self) -> Reply | None:
        """Return the next frame, as soon as all of it is there."""
        if self._header is None:
            if len(self._bytes) < 4:
                return None
            end = 4 + int.from_bytes(self._bytes[:4], "big")
            if end > MAX_HEADER:
                raise ValueError(f"a header of {end} bytes")
            if len(self._bytes) < end:
                return None
            header = json.loads(self._bytes[4:end])
            if len(header["raw"]) > MAX_PARTS:
                raise ValueError(f"{len(header['raw'])} parts")
            lengths = [int(length) for length in header["raw"]]
            if not all(0 <= length <= self._max_raw for length in lengths):
                raise ValueError(f"parts of {lengths} bytes")
            self._header = end, header, lengths
        end, header, lengths = self._header
        if len(self._bytes) < end + sum(lengths):
            return None
        self._header, parts = None, []
        for length in lengths:
            parts.append(bytes(self._bytes[end : end + length]))
            end += length
        del self._bytes[:end]
        return Reply(header, parts)

    def _take(self, one: Reply) -> None:
        if one.header["id"] == 0:  # the set-up is answered first
            return
        if one.header["id"] != self._number:
            raise ValueError(f"a frame for request {one.header['id']!r}")
        if "stream" not in one.header:
            self.reply.set_result(one)
            return
        self.written += sum(len(part) for part in one.raw)
        if self._on_piece is not None:
            self._on_piece(one.header["stream"], *one.raw)


def frame(header: Mapping[str, Any], *raw: bytes) -> bytes:
    text = json.dumps({**header, "raw": [len(part) for part in raw]}).encode("ascii")
    return b"".join((len(text).to_bytes(4, "big"), text, *raw))


async def run(sandbox: Sandbox, command: str, said: Heard) -> None:
    """Run a command to the end of its stream."""
    handlers = ExecutionHandlers(
        on_init=said.begun,
        on_stdout=said.line,
        on_stderr=said.complain,
        skip_accumulation=True,
    )
    await sandbox.commands.run(command, handlers=handlers)


async def _stop(running: asyncio.Task[Any]) -> None:
    running.cancel()
    await asyncio.wait([running])
    if not running.cancelled():
        running.exception()  # nobody has a use for it any more, nor for a complaint about that


async def ask(sandbox: Sandbox, command: str) -> tuple[str, int | None]:
    """Run a command; return its first line, or else what it complained about and its exit code.

    Raises `SandboxLost` when it cannot be run.
    """
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def heard(message: OutputMessage) -> None:
        if not answer.done():
            answer.set_result(message.text)

    running = asyncio.create_task(
        sandbox.commands.run(command, handlers=ExecutionHandlers(on_stdout=heard)), name=command
    )
    try:
        waiting: set[asyncio.Future[Any]] = {running, answer}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result(), None
        done = running.result()
    except SandboxException as error:
        raise SandboxLost(f"it runs no command: {brief(error)}") from None
    finally:
        await _stop(running)
    return "\n".join(message.text for message in done.logs.stderr)[-MAX_COMPLAINT:], done.exit_code


async def upload(sandbox: Sandbox, files: Mapping[str, bytes]) -> None:
    """Put files into the sandbox, readable by execd's user only. Raises `SandboxLost`."""
    try:
        # The SDK's own choice is 755, in decimal digits.
        await sandbox.files.write_files(
            [WriteEntry(path=path, data=data, mode=600) for path, data in files.items()]
        )
    except SandboxException as error:
        raise SandboxLost(f"no file can be put into it: {brief(error)}") from None


def brief(error: SandboxException) -> str:
    status = f"HTTP {error.status_code}: " if isinstance(error, SandboxApiException) else ""
    return f"{status}{error.args[0] if error.args else type(error).__name__}"[:MAX_COMPLAINT]


def _end_without_reply(running: asyncio.Task[None], said: Heard) -> str:
    error = running.exception()
    reason = brief(error) if isinstance(error, SandboxException) else repr(error) if error else ""
    complaint = f" [{said.complaint.strip()}]" if said.complaint else ""
    after = f" after {said.written} bytes of output" if said.written else ""
    return f"it sent no reply{after}: {reason or 'the command ended'}{complaint}"
