"""A process among the others: it says that it is there, and hears when all are asked to drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

import redis

from common.logs import logger
from common.queue.connection import Server, ServerGone
from common.queue.control import drain_asked
from common.queue.keys import FLEET

log = logger("presence")

PROCESSES = f"{FLEET}processes"
"""Zset: "<service> <consumer>" → when it last said that it is there (server time, Unix seconds)."""
_LISTEN = 1.0
"""Seconds between two looks whether a drain was asked for."""
_TELL = 5.0
"""Seconds between two words of a process."""
SILENT = 20.0
"""Seconds after which a silent process is taken for gone: killed, or cut off."""
FORGOTTEN = 3600.0
"""Seconds after which it is not listed any more. A busy event loop may be silent for minutes."""
_HEARD = 3 * _LISTEN
"""Seconds after which every living process has heard an order, and takes no more work."""
_LAST_WORD = 2.0


@dataclass(frozen=True, order=True)
class Process:
    """One process of the fleet, wherever it runs."""

    service: str
    consumer: str
    """Unique to this incarnation: one that is started again has another name."""


async def clock(server: Server) -> float:
    """Return the server's time, Unix seconds: the one clock that all processes share."""
    seconds, micros = await server.persist(server.client.time)
    return float(seconds + micros / 1e6)


async def living(server: Server, *, within: float = SILENT) -> list[Process]:
    """Return the processes that said within the last seconds that they are there."""
    since = await clock(server) - within
    rows = await server.persist(lambda: server.client.zrangebyscore(PROCESSES, since, "+inf"))
    return sorted(Process(*row.decode().split(" ", 1)) for row in rows)


class Presence:
    """Sets ``draining`` when somebody asks for a drain after this process began.

    ``last``: a process that others need obeys only once this holds, or ``patience`` seconds after
    it was asked. A context manager: there from entering to leaving.
    """

    def __init__(
        self,
        server: Server,
        service: str,
        consumer: str,
        draining: asyncio.Event,
        *,
        last: Callable[[Server], Awaitable[bool]] | None = None,
        patience: float = 0.0,
    ) -> None:
        self.asked: str | None = None
        """Who asked for the drain; None as long as nobody has."""
        self.deaf = False
        """Could an order not be read at the last look?"""
        self._server = server
        self._member = f"{service} {consumer}"
        self._draining = draining
        self._last = last
        self._patience = patience
        self._since = 0.0
        self._heard = 0.0
        self._left = False
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Presence:
        self._since = await clock(self._server)
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._left = True
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching}, timeout=_LAST_WORD)
        with suppress(redis.exceptions.RedisError, OSError, TimeoutError):
            async with asyncio.timeout(_LAST_WORD):
                await self._server.client.zrem(PROCESSES, self._member)

    async def drain_asked(self) -> bool:
        """Was a drain asked for since this process began? Asks the server, not the last look."""
        return await drain_asked(self._server, self._since) is not None

    async def _watch(self) -> None:
        tell_at = 0.0
        # A flag besides the cancellation: Python 3.11's wait_for, which redis-py sends with,
        # loses one that comes in the moment in which it ends.
        while not self._left:
            try:
                if time.monotonic() >= tell_at:
                    tell_at = time.monotonic() + _TELL
                    await self._tell()
                await self._listen()
                self.deaf = False
            except ServerGone:
                return  # draining already, and out of patience with an absent server
            except Exception as error:
                # Whatever it is may pass, and an order to drain must still be heard then.
                if not self.deaf:
                    log.error("presence.deaf", error=str(error)[:200])
                self.deaf = True
            await asyncio.sleep(_LISTEN)

    async def _tell(self) -> None:
        """Say that we are there."""
        await self._server.fcall("present", (FLEET,), (self._member, FORGOTTEN))

    async def _listen(self) -> None:
        if self.asked is None:
            self.asked = await drain_asked(self._server, self._since)
            if self.asked is None:
                return
            self._heard = time.monotonic()
            log.info("drain.asked", by=self.asked)
        if not self._draining.is_set() and await self._may_end():
            self._draining.set()

    async def _may_end(self) -> bool:
        if self._last is None:
            return True
        waited = time.monotonic() - self._heard
        if waited > self._patience:
            log.warning("drain.out_of_patience", seconds=round(waited, 1))
            return True
        # Before everybody has heard, what is quiet now may not stay so.
        return waited >= _HEARD and await self._last(self._server)
