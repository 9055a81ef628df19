"""A TCP proxy between one process and the server, to cut, stall or count what passes.

It runs in the event loop of the test. A stalled connection is what a partition looks like: nobody
is told, and what was on its way still arrives when it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_BLOCK = 1 << 16


class Proxy:
    """Forwards to ``url`` (redis://…) until told otherwise; use as an async context manager."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._refusing = False
        self._left: int | None = None
        self._open: set[asyncio.Task[None]] = set()
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self._drop()
        await asyncio.gather(*self._open, return_exceptions=True)

    @property
    def url(self) -> str:
        """The same server, through here."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        secret = f":{self._target.password}@" if self._target.password else ""
        return urlunsplit(self._target._replace(netloc=f"{secret}127.0.0.1:{port}"))

    def cut(self) -> None:
        """Break all connections, and refuse new ones until `heal`."""
        self._refusing = True
        self._drop()

    def stall(self) -> None:
        """Let nothing through in either direction, without a word, until `heal`."""
        self._flowing.clear()

    def heal(self) -> None:
        self._refusing, self._left = False, None
        self._flowing.set()

    def cut_after(self, size: int) -> None:
        """Break the connections once ``size`` more bytes have passed, wherever that is."""
        self._left = size

    def _drop(self) -> None:
        for task in self._open:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        far: asyncio.StreamWriter | None = None
        try:
            if self._refusing:
                return
            back, far = await asyncio.open_connection(self._target.hostname, self._target.port)
            async with asyncio.TaskGroup() as group:
                there = group.create_task(self._pump(reader, far))
                here = group.create_task(self._pump(back, writer))
                await asyncio.wait((there, here), return_when=asyncio.FIRST_COMPLETED)
                if here.done():
                    there.cancel()
                # The client has gone: what it sent has been passed on, nobody waits for answers.
                here.cancel()
        except (asyncio.CancelledError, OSError, ExceptionGroup):
            pass  # cut, or either side has gone: the other is told below
        finally:
            self._open.discard(task)
            for end in (writer, far):
                if end is not None:
                    with contextlib.suppress(OSError, RuntimeError):
                        end.transport.abort() if self._refusing else end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_BLOCK):
            await self._flowing.wait()
            if self._left is not None:
                data, self._left = data[: self._left], self._left - len(data)
            writer.write(data)
            await writer.drain()
            if self._left is not None and self._left <= 0:
                self.cuts += 1
                self._left = None
                self._drop()
