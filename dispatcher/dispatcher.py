"""Follows tasks files and queues every line exactly once: tail → parse → publish."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from common.failures import ConfigurationError
from common.logs import logger
from common.metrics import Metrics
from common.process import ended
from common.queue.connection import Server
from common.serve import Health
from common.settings import Settings
from dispatcher.follower import Follower, Scenes
from dispatcher.readers import Progress
from dispatcher.rejects import Rejects
from dispatcher.report import Draining, Report, pause

log = logger("dispatcher")

_POLL = 0.2
"""Seconds between two looks at files that have nothing new."""
_POLL_LIMIT = 5.0
_LAST_BATCH = 3.0
"""Seconds the batch in flight gets after SIGTERM. It is all or nothing, so cutting it is safe."""


async def dispatch(
    files: Sequence[Path],
    settings: Settings,
    server: Server,
    metrics: Metrics,
    health: Health,
    *,
    draining: asyncio.Event,
    once: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Queue the tasks in ``files`` as they grow, until ``draining`` is set.

    With ``once`` it ends when all of them are in the queue, a last line without newline included.
    Raises `ConfigurationError` when only a person can help.
    """
    scenes = Scenes(settings, server, metrics)
    report = Report(Rejects(settings.output), draining)
    paths = {str(path.resolve()): path.absolute() for path in files}
    for path in paths.values():
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{path} is not a regular file")
    followers = [Follower(path, key, scenes, report, once=once) for key, path in paths.items()]

    turns = asyncio.create_task(
        _turns(followers, server, metrics, health, draining=draining, once=once, tell=progress)
    )
    drained = asyncio.create_task(draining.wait())
    try:
        await asyncio.wait({turns, drained}, return_when=asyncio.FIRST_COMPLETED)
        health.draining = draining.is_set()
        if not turns.done():
            await asyncio.wait({turns}, timeout=_LAST_BATCH)
        if turns.done():
            with suppress(Draining):
                turns.result()
    finally:
        await ended(turns, drained)
    log.info("dispatcher.ended", files=[follower.key for follower in followers])


async def _turns(
    followers: Sequence[Follower],
    server: Server,
    metrics: Metrics,
    health: Health,
    *,
    draining: asyncio.Event,
    once: bool,
    tell: Callable[[Progress], None] | None,
) -> None:
    """Give every file a step in turn; wait when none of them has anything."""
    log.info("dispatcher.following", server=await server.check(), files=[f.key for f in followers])
    await asyncio.gather(*(follower.load() for follower in followers))
    told: dict[str, Progress] = {}
    while not draining.is_set():
        health.turn()
        began = time.monotonic()
        busy = False
        for follower in followers:
            busy = await follower.step() or busy
            now = follower.progress()
            if now is not None and told.get(now.file) != now:
                told[now.file] = now
                await now.write(server)
                if tell is not None:
                    tell(now)
            if draining.is_set():
                break
        metrics.file_lag.set(sum(known.size - known.offset for known in told.values()))
        if busy:
            continue
        if once and all(follower.done for follower in followers):
            return
        # Looking at a file can be slow (a far disk, an endless last line): never most of the time.
        took = time.monotonic() - began
        await pause(draining, min(_POLL_LIMIT, max(_POLL, 4 * took)))
