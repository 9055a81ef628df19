"""The Lua functions of limits and budgets: loaded as a library of their own, beside the queue's."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import redis.asyncio

from common.logs import logger
from common.queue import library as scripts
from common.queue.connection import Server
from common.quota.keys import PREFIX

log = logger("quota")

_LIBRARY = "quota_"
_HELPERS = ("_shared", "_budget", "_limit", "_line")


@cache
def library() -> tuple[str, str]:
    """Return ``(version, code)``."""
    return scripts.build("common.quota", _LIBRARY, _HELPERS)


async def call(server: Server, name: str, argv: Sequence[Any] = ()) -> Any:
    """Call a function; loads the library where it is missing, waits out an absent server.

    Raises as `Server.persist` does.
    """
    command = ("FCALL", f"{name}_{library()[0]}", 1, PREFIX, *argv)
    return await server.run(*command, load=_load)


async def _load(client: redis.asyncio.Redis) -> None:
    version, code = library()
    await scripts.load(client, code)
    try:
        await scripts.forget_old(client, _LIBRARY, version)
    except (redis.exceptions.RedisError, OSError) as error:
        # No right to list functions, no memory: an old library costs some 20 kB.
        log.warning("quota.old_libraries_stay", error=str(error)[:200])
