"""Waiting so that a signal can end it, and for the disk when rejected lines cannot be written."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from common.logs import logger
from dispatcher.rejects import Reject, Rejects

log = logger("dispatcher")

_RETRY, _RETRY_LIMIT = 0.5, 10.0
"""Seconds before the first and, doubling, between later attempts to write."""


class Draining(Exception):
    """It is time to end, and the position stays where it is."""


async def pause(draining: asyncio.Event, seconds: float) -> bool:
    """Wait; returns early, and True, when it is time to end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await draining.wait()
    return draining.is_set()


class Report:
    """The way of rejected lines to disk. Whoever awaits it goes no further until they are there."""

    def __init__(self, rejects: Rejects, draining: asyncio.Event) -> None:
        self._rejects = rejects
        self._draining = draining

    async def write(self, rejects: list[Reject]) -> None:
        """Write them, however long it takes. Raises `Draining` when told to end before."""
        if not rejects:
            return
        first, delay = rejects[0], 0.0
        while (written := await self._attempt(rejects, quiet=delay > 0)) is None:
            delay = min(_RETRY_LIMIT, 2 * delay or _RETRY)
            if await pause(self._draining, delay):
                lines = [reject.line.number for reject in rejects[:20]]
                log.error("rejected.not_written", file=first.file, lines=lines)
                raise Draining
        if delay:
            log.info("rejected.writable_again", path=str(self._rejects.path))
        if written:
            field, reason = first.problems[0]
            log.warning(
                "lines.rejected", file=first.file, count=written, first=first.line.number,
                field=field[:100], reason=reason[:300],
            )  # fmt: skip

    async def _attempt(self, rejects: list[Reject], *, quiet: bool) -> int | None:
        try:
            return await asyncio.to_thread(self._rejects.write, rejects)
        except OSError as error:
            if not quiet:
                log.error(
                    "rejected.unwritable", path=str(self._rejects.path), error=str(error),
                    file=rejects[0].file, line=rejects[0].line.number,
                    hint="dispatching waits here: free space, or make the folder writable",
                )  # fmt: skip
            return None
