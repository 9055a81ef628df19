"""Lua libraries: one file per function, loaded as one library whose name tells its version."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any

import redis.asyncio

from common.logs import logger

log = logger("queue")

PREFIX = "fleet_"
_USED = "fleet:libraries"
"""Sorted set: name of a library -> when a process that uses it last began (s)."""
_KEPT = 8
"""Libraries of other releases that stay on a server. More releases than this never run side by
side, and one that was removed too early is simply loaded again."""


@cache
def library() -> tuple[str, str]:
    """Return ``(version, code)`` of the queue's library."""
    return build("common.queue", PREFIX, ("_shared",))


def build(package: str, prefix: str, helpers: Sequence[str]) -> tuple[str, str]:
    """Return ``(version, code)`` of the library in the folder ``lua`` of a package.

    The version is a hash of the code and part of every function's name: processes of different
    releases can share a server, each calling exactly the scripts it came with. ``helpers`` come
    first, in this order: Lua reads from top to bottom.
    """
    folder = resources.files(package) / "lua"
    names = {f.name.removesuffix(".lua") for f in folder.iterdir() if f.name.endswith(".lua")}
    order = (*helpers, *sorted(names - set(helpers)))
    source = "\n".join((folder / f"{name}.lua").read_text(encoding="utf-8") for name in order)
    version = hashlib.sha256(source.encode()).hexdigest()[:8]
    return version, f"#!lua name={prefix}{version}\n" + source.replace("@VERSION@", version)


def is_missing(error: redis.exceptions.ResponseError) -> bool:
    """Does the server not have our library? After a flush, a fail-over, or at first use."""
    return "Function not found" in str(error)


def is_loaded_by_another(error: redis.exceptions.ResponseError) -> bool:
    """Was another process faster? The name is a hash of the code, so it loaded the same."""
    return "already exists" in str(error)


async def load(client: redis.asyncio.Redis, code: str | None = None) -> None:
    """Put a library (the queue's, unless ``code`` is another) on the server.

    It may be there by now.
    """
    try:
        # Never REPLACE: it would take the functions away from under another's call.
        await client.function_load(code or library()[1])
    except redis.exceptions.ResponseError as error:
        if not is_loaded_by_another(error):
            raise


async def forget_old(
    client: redis.asyncio.Redis, prefix: str = PREFIX, version: str | None = None
) -> None:
    """Say that this release is in use, and remove libraries of those that were not for longest.

    Of the libraries named ``prefix``; ``version``: ours, where it is not the queue's.
    """
    ours = prefix + (version or library()[0])
    await client.zadd(_USED, {ours: (await client.time())[0]})
    listed = _names(await client.function_list(library=f"{prefix}*"))
    rows: list[Any] = await client.zrange(_USED, 0, -1, withscores=True)
    used = {row[0].decode(): float(row[1]) for row in rows if row[0].decode().startswith(prefix)}
    others = sorted((n for n in listed if n != ours), key=lambda name: used.get(name, 0.0))
    for name in others[: max(0, len(others) - _KEPT)]:
        try:
            await client.function_delete(name)
        except redis.exceptions.ResponseError:
            continue  # another process was faster
        log.info("queue.old_library_removed", library=name)
    gone = used.keys() - listed - {ours}
    if gone:
        await client.zrem(_USED, *gone)


def _names(listed: Iterable[Any]) -> list[str]:
    """Names of the libraries in a FUNCTION LIST reply, whichever protocol it came over."""
    found = []
    for row in listed:
        fields = row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True))
        name = fields.get(b"library_name") or fields.get("library_name")
        found.append(name.decode() if isinstance(name, bytes) else str(name))
    return found
