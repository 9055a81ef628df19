"""The Lua functions of limits and budgets: loaded as a library of their own, beside the queue's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import redis.asyncio

from common.queue.connection import Server
from common.quota.keys import PREFIX

_HELPERS = ("_shared", "_budget", "_limit", "_line")
"""In this order: Lua reads from top to bottom."""


@cache
def library() -> tuple[str, str]:
    """Return ``(version, code)``; the version is a hash of the code and part of every name."""
    folder = resources.files("common.quota") / "lua"
    names = {f.name.removesuffix(".lua") for f in folder.iterdir() if f.name.endswith(".lua")}
    order = (*_HELPERS, *sorted(names - set(_HELPERS)))
    source = "\n".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in order)
    version = hashlib.sha256(source.encode()).hexdigest()[:8]
    return version, f"#!lua name=quota_{version}\n" + source.replace("@VERSION@", version)


async def call(server: Server, name: str, argv: Sequence[Any] = ()) -> Any:
    """Call a function; loads the library where it is missing, waits out an absent server.

    Raises as `Server.persist` does.
    """
    command = ("FCALL", f"{name}_{library()[0]}", 1, PREFIX, *argv)
    return await server.run(*command, load=_load)


async def _load(client: redis.asyncio.Redis) -> None:
    try:
        await client.function_load(library()[1])
    except redis.exceptions.ResponseError as error:
        if "already exists" not in str(error):  # another process was faster
            raise
