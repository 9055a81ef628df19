"""Is anything still under way? A reviewer that is asked to drain ends only when nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from common.queue.connection import Server
from common.queue.keys import WORKERS, Keys

_RELEASED = b"@released"
"""Owner of what a draining worker handed back (lua/_shared.lua): nobody works on that."""


async def quiet(server: Server, scenes: Sequence[str]) -> bool:
    """Does no worker run anything of ``scenes``, and does no attempt wait for its review?"""
    return all(await asyncio.gather(*(_quiet(server, Keys(scene)) for scene in scenes)))


async def _quiet(server: Server, keys: Keys) -> bool:
    async def ask() -> list[Any]:
        # One moment in time: a commit moves work from the lanes to the events in one call too.
        async with server.client.pipeline(transaction=True) as pipe:
            pipe.xlen(keys.events)
            for lane in keys.lanes:
                pipe.xpending(lane, WORKERS)
            return list(await pipe.execute(raise_on_error=False))

    waiting, *lanes = await server.persist(ask)
    # XPENDING of a lane that nobody has touched yet is an error: nothing runs there.
    owners = [c for lane in lanes if isinstance(lane, dict) for c in lane["consumers"]]
    return not waiting and all(owner["name"] == _RELEASED for owner in owners)
