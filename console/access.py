"""The desk of whichever queue server there is right now, found anew as servers come and go.

`fleet up` keeps its server only while it runs; the service starts the one it left behind, and gives
it back as soon as a `fleet up` wants to have it, which then is asked instead.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from common.logs import logger
from common.process import ended
from common.queue.connection import Server, ServerGone
from console.desk import Desk

log = logger("console")
T = TypeVar("T")

_PATIENCE = 5.0
"""Seconds a request waits for an absent server."""
_LOOK = 0.2
_GRACE = 2.0
"""Seconds for the requests under way when the server is given back, and for it to be taken."""


@dataclass(frozen=True)
class Lent:
    """A queue server, for as long as it is lent."""

    url: str
    ours: bool
    """It runs for us alone, and ends when it is given back."""


class Access:
    """Leads each request to the desk: ``async with access() as desk``.

    ``find`` lends the server there is, and raises `ConfigurationError` where there is none;
    ``wanted``: does somebody wait for the one lent to us? ``open_desk`` makes a desk of a server.
    """

    def __init__(
        self,
        find: Callable[[], AbstractContextManager[Lent]],
        wanted: Callable[[], bool],
        open_desk: Callable[[Server], Awaitable[Desk]],
    ) -> None:
        self._find = find
        self._wanted = wanted
        self._open_desk = open_desk
        # One thread for all of it: a server ends with the thread that started it.
        self._thread = ThreadPoolExecutor(1, "server")
        self._loan = ExitStack()
        self._lent: Lent | None = None
        self._changing = asyncio.Lock()
        self._server: Server | None = None
        self._desk: Desk | None = None
        self._users = 0
        self._gone = False
        self._watching: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await ended(self._watching)
        if self._server is not None:
            await self._server.close()
        await self._in_thread(self._give_back)
        self._thread.shutdown()

    @asynccontextmanager
    async def __call__(self) -> AsyncIterator[Desk]:
        async with self._changing:
            desk = await self._now()
            self._users += 1
        try:
            yield desk
        except ServerGone:
            self._gone = True
            raise
        finally:
            self._users -= 1

    async def _now(self) -> Desk:
        if self._gone:
            self._gone = False
            await self._in_thread(self._give_back)
        lent = await self._in_thread(self._borrow)
        if self._desk is not None and self._server is not None and self._server.url == lent.url:
            return self._desk
        server = Server(lent.url, patience=_PATIENCE)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(server.close)
            desk = await self._open_desk(server)
            undo.pop_all()
        old, self._server, self._desk = self._server, server, desk
        if old is not None:
            await old.close()
        return desk

    # -- handing over ------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            try:
                if self._lent is not None and await self._in_thread(self._wanted):
                    await self._hand_over()
            except (OSError, subprocess.SubprocessError) as error:
                # The next one is to be given back, too: whoever asks for it is not to wait for us.
                log.error("console.not_given", error=str(error)[:500])

    async def _hand_over(self) -> None:
        async with self._changing:  # requests that come now wait until it is somebody else's
            await _wait(self._idle)
            await self._in_thread(self._give_back)
            log.info("console.gave_way")
            await _wait(self._taken)

    async def _idle(self) -> bool:
        return not self._users

    async def _taken(self) -> bool:
        return not await self._in_thread(self._wanted)

    # -- in the thread, which alone changes what is lent: a request may be cancelled meanwhile ---

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _borrow(self) -> Lent:
        if self._lent is not None:
            return self._lent
        lent = self._loan.enter_context(self._find())
        if lent.ours:
            self._lent = lent
        else:
            self._loan.close()  # whose it is may change: asked for again each time
        return lent

    def _give_back(self) -> None:
        self._lent = None
        self._loan.close()


async def _wait(true: Callable[[], Awaitable[bool]]) -> None:
    """Return once ``true()`` holds, or the grace is over."""
    deadline = time.monotonic() + _GRACE
    while not await true():
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(_LOOK / 10)
