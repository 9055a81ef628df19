"""The way to the server: connecting, the Lua library, and waiting out an absent server."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry as SyncRetry

from common.failures import ConfigurationError
from common.logs import logger

log = logger("queue")

BLOCK_MS = 1000
"""Longest blocking read; the socket timeout lies well above it."""
_SOCKET_TIMEOUT = 10.0
_GONE = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.OutOfMemoryError,
    OSError,
)
_PASSING = ("MISCONF", "BUSY", "NOREPLICAS", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "LOADING")
"""Answers of a server that is there but cannot serve now: its disk is full, it is failing over."""
_FOR_GOOD = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.NoPermissionError,
)


class ServerGone(Exception):
    """The server did not answer within the caller's patience."""


@cache
def library() -> tuple[str, str]:
    """Return ``(version, code)`` of the Lua library.

    The version is a hash of the code and part of every function's name: processes of different
    releases can share a server, each calling exactly the scripts it came with.
    """
    folder = resources.files("common.queue") / "lua"
    names = sorted(f.name for f in folder.iterdir() if f.name.endswith(".lua"))
    assert names[0] == "_shared.lua"  # helpers come first: Lua reads from top to bottom
    source = "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
    version = hashlib.sha256(source.encode()).hexdigest()[:8]
    return version, f"#!lua name=fleet_{version}\n" + source.replace("@VERSION@", version)


def where(url: str) -> str:
    """Return the address in ``url`` without its password, for messages."""
    parts = urlsplit(url)
    return f"{parts.hostname or parts.path}:{parts.port or 6379}"


class Server:
    """One Valkey or Redis, asked asynchronously; rides out restarts.

    ``patience``: seconds to wait for an absent server; None waits for ever (services), a command
    line says at once that nothing answers.
    """

    def __init__(self, url: str, *, patience: float | None = None) -> None:
        self.url = url
        self.patience = patience
        try:
            self.client: redis.asyncio.Redis = redis.asyncio.Redis(
                connection_pool=redis.asyncio.BlockingConnectionPool.from_url(
                    url,
                    max_connections=64,
                    timeout=_SOCKET_TIMEOUT,
                    socket_timeout=_SOCKET_TIMEOUT,
                    socket_connect_timeout=5.0,
                    socket_keepalive=True,
                    retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
                )
            )
        except ValueError as error:
            raise ConfigurationError(f"FLEET_REDIS_URL: {error}") from None

    async def close(self) -> None:
        await self.client.aclose()

    async def answers(self) -> bool:
        """Does the server answer right now?"""
        try:
            return bool(await asyncio.wait_for(self.client.ping(), 2.0))
        except (redis.exceptions.RedisError, OSError, TimeoutError):
            return False

    async def fcall(self, name: str, keys: Sequence[str], argv: Sequence[Any]) -> Any:
        """Call a function of the library; loads it where it is missing. Safe to repeat."""
        version, code = library()

        async def once() -> Any:
            try:
                return await self.client.fcall(f"{name}_{version}", len(keys), *keys, *argv)
            except redis.exceptions.ResponseError as error:
                if "Function not found" not in str(error):
                    raise
            await self.client.function_load(code, replace=True)
            return await self.client.fcall(f"{name}_{version}", len(keys), *keys, *argv)

        return await self.persist(once)

    async def persist(self, ask: Any) -> Any:
        """Await ``ask()``, again and again with spread back-off while the server is away."""
        began, attempt = time.monotonic(), 0
        while True:
            try:
                answer = await ask()
            except _FOR_GOOD as error:
                raise ConfigurationError(
                    f"the server at {where(self.url)} refuses us: {error}; "
                    "check user and password in FLEET_REDIS_URL"
                ) from None
            except (*_GONE, redis.exceptions.ResponseError) as error:
                if not isinstance(error, _GONE) and not str(error).startswith(_PASSING):
                    raise
                away = time.monotonic() - began
                if self.patience is not None and away >= self.patience:
                    raise ServerGone(
                        f"no answer from the server at {where(self.url)}: {error}. "
                        "Is it running? Start one with `fleet up`, or set FLEET_REDIS_URL."
                    ) from None
                if attempt % 10 == 0:
                    log.warning(
                        "queue.server_away", address=where(self.url), seconds=round(away, 1),
                        error=str(error)[:200],
                    )  # fmt: skip
                await asyncio.sleep(random.uniform(0.05, min(3.0, 0.1 * 2 ** min(attempt, 6))))
                attempt += 1
            else:
                if attempt:
                    log.info("queue.server_back", seconds=round(time.monotonic() - began, 1))
                return answer

    async def check(self) -> str:
        """Refuse a server that could lose work. Returns its name and version.

        Raises `ConfigurationError` saying what to change.
        """
        info = await self.persist(lambda: self.client.info())
        name = "valkey" if "valkey_version" in info else "redis"
        version = str(info.get("valkey_version") or info["redis_version"])
        if int(str(info["redis_version"]).split(".")[0]) < 7:
            raise ConfigurationError(
                f"{name} {version} at {where(self.url)} is too old: use Valkey, or Redis >= 7"
            )
        if info.get("maxmemory_policy", "noeviction") != "noeviction":
            raise ConfigurationError(
                f"{name} at {where(self.url)} may evict queued work: maxmemory-policy is "
                f"{info['maxmemory_policy']}; set it to noeviction"
            )
        if not info.get("aof_enabled"):
            raise ConfigurationError(
                f"{name} at {where(self.url)} would forget its queue in a crash: "
                "set `appendonly yes` (CONFIG SET appendonly yes)"
            )
        return f"{name} {version}"


def blocking_client(url: str) -> redis.Redis:
    """A connection of its own for a thread; no retries, short timeouts."""
    return redis.Redis.from_url(
        url, socket_timeout=5.0, socket_connect_timeout=3.0, retry=SyncRetry(NoBackoff(), 0)
    )
