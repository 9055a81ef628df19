"""The short life of a sandbox on its server, renewed for as long as we want it to live."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from common.failures import ConfigurationError
from common.logs import logger
from workers.sandboxes.opensandbox import labels
from workers.sandboxes.opensandbox.server import Server
from workers.sandboxes.protocol import SandboxError, SandboxLost

log = logger("opensandbox")

TTL = 90.0
"""Seconds a sandbox outlives its worker, at most. Servers grant no less than 60 at the start."""
RENEW_EVERY = TTL / 3
"""Seconds; a server in trouble gets two more tries."""
LAST_WORDS_PATIENCE = 3.0
"""Seconds to ask what became of a sandbox that was lost."""
KILL_TRIES = 3
KILL_PATIENCE = 20.0
"""Seconds for all of them. What is then left dies with its TTL."""


class Lease:
    """One sandbox on the server: the `Jail` of an `AgentSandbox`."""

    def __init__(self, server: Server, sandbox_id: str) -> None:
        self._server = server
        self._id = sandbox_id
        self._on_loss: Callable[[str], None] = lambda reason: None
        self._ask_why: Callable[[], Awaitable[bool]] | None = None
        self._spent = False
        self._marks: Mapping[str, str] = {}
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._lost: str | None = None
        self._renewing = asyncio.create_task(self._renew(), name=f"renew {sandbox_id}")

    def tell(self, on_loss: Callable[[str], None], ask_why: Callable[[], Awaitable[bool]]) -> None:
        """Name who wants to know when the server has the sandbox no more.

        ``ask_why`` says whether a sandbox that was lost had run out of memory.
        """
        self._on_loss, self._ask_why = on_loss, ask_why

    @property
    def running(self) -> bool:
        return self._lost is None

    async def log(self) -> str:
        """Ask the server how it ended, and what is left of it whether it ran out of memory."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_PATIENCE):
                self._spent = self._ask_why is not None and await self._ask_why()
        try:
            async with asyncio.timeout(LAST_WORDS_PATIENCE):
                status = (await self._server.info(self._id)).status
        except TimeoutError:
            return "the server does not answer"
        except (SandboxError, ConfigurationError) as error:
            return str(error)
        return ": ".join(filter(None, (status.state, status.reason, status.message)))

    def counters(self) -> tuple[int, int]:
        # The agent inside sees what its container counted, as long as it is there.
        return int(self._spent), 0

    def label(self, marks: Mapping[str, str]) -> None:
        self._marks = labels.of_task(marks)
        self._loop.call_soon_threadsafe(self._woken.set)

    async def end(self) -> None:
        self._renewing.cancel()
        await asyncio.wait([self._renewing])
        await kill(self._server, self._id)

    async def _renew(self) -> None:
        """Renew the life until it is over, or nobody wants it any more."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), RENEW_EVERY)
            if self._woken.is_set():
                self._woken.clear()
                await self._relabel()
            try:
                await self._server.renew(self._id, TTL)
                renewed = loop.time()
            except (SandboxError, ConfigurationError) as error:
                log.warning("sandbox.unrenewed", sandbox=self._id, error=str(error))
                if isinstance(error, SandboxLost) or loop.time() > renewed + TTL:
                    self._lost = str(error)
                    self._on_loss(self._lost)
                    return

    async def _relabel(self) -> None:
        try:
            await self._server.relabel(self._id, self._marks)
        except (SandboxError, ConfigurationError) as error:  # labels are for people only
            log.warning("sandbox.unlabelled", sandbox=self._id, error=str(error))


async def kill(server: Server, sandbox_id: str) -> bool:
    """End a sandbox, or log that it is left to its TTL; returns whether it is gone."""
    reason = "the server did not answer in time"
    try:
        async with asyncio.timeout(KILL_PATIENCE):
            for attempt in range(KILL_TRIES):
                await asyncio.sleep(attempt)
                try:
                    await server.kill(sandbox_id)
                    return True
                except SandboxLost:
                    return True  # it is gone already
                except (SandboxError, ConfigurationError) as error:
                    reason = str(error)
    except TimeoutError:
        pass
    log.warning("sandbox.left_to_its_ttl", sandbox=sandbox_id, error=reason)
    return False
