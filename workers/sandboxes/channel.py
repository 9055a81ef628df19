"""The worker's end of the wire to a jail's agent: one request at a time, each with a deadline.

What comes back is written by a process next to hostile programs, so nothing in it is trusted:
sizes are bounded, and anything that is no proper reply means that the sandbox is lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, NamedTuple

from pydantic import JsonValue

from workers.sandboxes.protocol import SandboxLost, SandboxPathError

MAX_HEADER = 16 << 20
"""Bytes of JSON in one frame; a listing of a huge folder is the largest."""


MAX_PARTS = 2
"""Byte strings in one frame: the two streams of a program."""

OnPiece = Callable[[Any, bytes], None]


class Reply(NamedTuple):
    header: dict[str, Any]
    raw: list[bytes]


def unless_refused(reply: Reply) -> Reply:
    """Return a reply. Raises `SandboxPathError` for one that refuses a path."""
    if "refused" in reply.header:
        # It may repeat half a character of the path asked for, which no log could encode.
        raise SandboxPathError(str(reply.header["refused"]).encode("utf-8", "replace").decode())
    return reply


class Channel:
    """Requests to one agent and its replies."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, max_raw: int
    ) -> None:
        self.lost: str | None = None
        """Why there will be no more replies."""
        self._reader = reader
        self._writer = writer
        self._max_raw = max_raw
        self._numbers = count(1)
        self._turn = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[Reply]] = {}
        self._on_piece: OnPiece | None = None
        self._listening = asyncio.create_task(self._listen(), name="sandbox replies")

    @property
    def busy(self) -> bool:
        return self._turn.locked()

    async def call(
        self,
        op: str,
        *raw: bytes,
        patience: float,
        on_piece: OnPiece | None = None,
        **fields: JsonValue | Sequence[str],
    ) -> Reply:
        """Send one request and return its reply; ``on_piece`` gets what comes before it.

        A cancelled call stops what it started; the sandbox stays usable. Raises `SandboxLost`
        when there is no reply within ``patience`` seconds, `SandboxPathError` for a refused path.
        """
        async with self._turn:
            if self.lost:
                raise SandboxLost(self.lost)
            number = next(self._numbers)
            reply = self._waiting[number] = asyncio.get_running_loop().create_future()
            self._on_piece = on_piece
            try:
                async with asyncio.timeout(patience):
                    self._send({"id": number, "op": op, **fields}, *raw)
                    await self._writer.drain()
                    header, data = await reply
            except asyncio.CancelledError:
                self._send({"id": number, "op": "cancel"})
                raise
            except TimeoutError:
                self.fail(f"its agent did not answer {op!r} within {patience:g} s")
                raise SandboxLost(str(self.lost)) from None
            except ConnectionError:
                self.fail("its agent is gone")
                raise SandboxLost(str(self.lost)) from None
            finally:
                self._waiting.pop(number, None)
                if reply.done() and not reply.cancelled():
                    reply.exception()  # it may say the same once more, to nobody
        return unless_refused(Reply(header, data))

    def fail(self, reason: str) -> None:
        """Give up on the agent; whoever waits for a reply gets `SandboxLost`."""
        self.lost = self.lost or reason
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(SandboxLost(self.lost))

    async def close(self) -> None:
        """Stop listening and close the wire, which ends the agent if it still lives."""
        self.fail("it is closed")
        self._writer.close()
        self._listening.cancel()
        await asyncio.wait([self._listening])

    def _send(self, header: dict[str, Any], *raw: bytes) -> None:
        if self._writer.is_closing():
            return
        text = json.dumps({**header, "raw": [len(part) for part in raw]}).encode("ascii")
        self._writer.write(b"".join((len(text).to_bytes(4, "big"), text, *raw)))

    async def _listen(self) -> None:
        try:
            while True:
                reply = await self._receive()
                waiting = self._waiting.get(reply.header["id"])
                if "stream" in reply.header:
                    if waiting is not None and self._on_piece is not None:
                        self._on_piece(reply.header["stream"], *reply.raw)
                    continue
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.fail("its agent is gone")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            self.fail(f"its agent sent no proper reply ({type(error).__name__}: {error})")

    async def _receive(self) -> Reply:
        size = int.from_bytes(await self._reader.readexactly(4), "big")
        if size > MAX_HEADER:
            raise ValueError(f"a header of {size} bytes")
        header = json.loads(await self._reader.readexactly(size))
        raw = []
        if len(header["raw"]) > MAX_PARTS:
            raise ValueError(f"{len(header['raw'])} parts")
        for length in header["raw"]:
            if not 0 <= length <= self._max_raw:
                raise ValueError(f"a part of {length} bytes")
            raw.append(await self._reader.readexactly(length))
        return Reply(header, raw)
