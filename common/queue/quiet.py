"""Is anything still under way? A reviewer that is asked to drain ends only when nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from common.queue.connection import Server
from common.queue.scene_queue import SceneQueue


async def quiet(server: Server, scenes: Sequence[str]) -> bool:
    """Does no worker run anything of ``scenes``, and does no attempt wait for its review?

    What a draining worker handed back waits, and does not run.
    """
    counts = await asyncio.gather(*(SceneQueue(server, scene).counts() for scene in scenes))
    return not any(count.running or count.reviewing for count in counts)
