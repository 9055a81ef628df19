"""The way to the server: asking it, calling the Lua library, and waiting out an absent server."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import redis
import redis.asyncio

from common.failures import ConfigurationError
from common.logs import logger
from common.process import ended
from common.queue import library as scripts
from common.queue.address import connect, connect_blocking, read
from common.queue.channel import Channel

log = logger("queue")

BLOCK_MS = 1000
"""Longest blocking read; the socket timeout lies well above it."""
_SOCKET_TIMEOUT = 10.0
_CONNECT_TIMEOUT = 5.0
_LONGEST_PAUSE = 3.0
_LOADS = 5
"""How often a call loads the library that vanishes again before it: somebody is flushing."""
_REMINDER = 10.0
"""Seconds between two log lines about the same outage."""
_GONE = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.InvalidResponse,
    OSError,
)
_CANNOT_NOW = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)
"""Of a server that is there but cannot serve now. redis-py cuts the code word off their text."""
_PASSING = ("MISCONF", "BUSY ", "NOREPLICAS", "LOADING", "UNBLOCKED")
"""The same, where redis-py has no class: its disk is full, a script runs, it is failing over."""
_MOVED = (redis.exceptions.ReadOnlyError, redis.exceptions.ClusterDownError)
"""Not the master any more: connections to it are of no use, another may have its name by now."""
_FOR_GOOD = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.NoPermissionError,
)


Load: TypeAlias = Callable[[redis.asyncio.Redis], Awaitable[None]]


class ServerGone(Exception):
    """The server did not answer within the caller's patience."""


class MemoryFull(Exception):
    """The server has no memory for this much now; less of it may fit."""


class Server:
    """One Valkey or Redis, or the master behind Sentinels, asked asynchronously.

    It rides out restarts, fail-overs and full memory. ``patience``: seconds to wait for an absent
    server; None waits for ever (services), a command line says at once that nothing answers.
    Raises `ConfigurationError` for a URL that cannot be read.
    """

    def __init__(self, url: str, *, patience: float | None = None) -> None:
        self.url = url
        self.patience = patience
        self.address = read(url)
        self.doubts: tuple[str, ...] = ()
        """What `check` found that is no reason to refuse the server, but may lose work."""
        self.client: redis.asyncio.Redis = connect(
            self.address,
            max_connections=64,
            timeout=_SOCKET_TIMEOUT,
            socket_timeout=_SOCKET_TIMEOUT,
            socket_connect_timeout=_CONNECT_TIMEOUT,
            socket_keepalive=True,
        )
        self.interruptions = 0
        """Answers that never came: what they said may have happened all the same."""
        self._names: dict[str, str] = {}
        self._channel: Channel | None = None
        self._opening: asyncio.Task[Channel] | None = None
        self._proven = False
        self._said = -_REMINDER

    async def close(self) -> None:
        if self._opening is not None:
            await ended(self._opening)
        if self._channel is not None:
            await self._channel.close()
        await self.client.aclose()
        manager = getattr(self.client.connection_pool, "sentinel_manager", None)
        if manager is not None:
            await manager.aclose()

    async def answers(self) -> bool:
        """Does the server answer right now?"""
        try:
            return bool(await asyncio.wait_for(self.client.ping(), 2.0))
        except (redis.exceptions.RedisError, OSError, TimeoutError):
            return False

    # -- asking ------------------------------------------------------------------------------

    async def fcall(
        self, name: str, keys: Sequence[str], argv: Sequence[Any], *, wait_for_memory: bool = True
    ) -> Any:
        """Call a function of the library; loads it where it is missing. Safe to repeat.

        Without ``wait_for_memory`` a server that is full is not waited for: raises `MemoryFull`.
        """
        full = self._names.get(name)
        if full is None:
            full = self._names[name] = f"{name}_{scripts.library()[0]}"
        return await self.run(
            "FCALL", full, len(keys), *keys, *argv, wait_for_memory=wait_for_memory
        )

    async def run(
        self, *command: Any, load: Load = scripts.load, wait_for_memory: bool = True
    ) -> Any:
        """Send a command that does not block and is safe to repeat; waits out an absent server.

        ``load`` puts the library of a function that is not there on the server;
        ``wait_for_memory`` as in `fcall`.
        """
        channel = self._channel
        if channel is not None and channel.open:  # the hot path
            try:
                return await channel.call(*command)
            except _GONE:
                self.interruptions += 1
            except redis.exceptions.ResponseError as error:
                # What the server will not do now is asked again below; what it did wrong is not.
                if not scripts.is_missing(error) and not _is_passing(error):
                    raise
        return await self.persist(
            lambda: self._call(command, load), wait_for_memory=wait_for_memory
        )

    async def _call(self, command: tuple[Any, ...], load: Load) -> Any:
        channel = await self._opened()
        for _ in range(_LOADS):
            try:
                return await channel.call(*command)
            except redis.exceptions.ResponseError as error:
                if not scripts.is_missing(error):
                    raise
            await load(self.client)
        return await channel.call(*command)

    async def _opened(self) -> Channel:
        """Return the open channel. Who finds none opens one, and all who wait share its fate."""
        if self._channel is not None and self._channel.open:
            return self._channel
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._open(), name="queue-connect")
            # All who waited may be gone by then; the next to ask hears of it.
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Channel:
        if self._channel is not None:
            await self._channel.close()
        self._channel = await Channel.over(
            self.client.connection_pool,
            timeout=_SOCKET_TIMEOUT,
            patience=_CONNECT_TIMEOUT + len(self.address.sentinels),
        )
        return self._channel

    async def persist(self, ask: Any, *, wait_for_memory: bool = True) -> Any:
        """Await ``ask()``, again and again with spread back-off while the server is away.

        Raises `ServerGone` when patience ends, `ConfigurationError` when the server refuses us,
        and `MemoryFull` as `fcall` does.
        """
        began, attempt = time.monotonic(), 0
        while True:
            try:
                answer = await ask()
            except _FOR_GOOD as error:
                # Whoever let us in before is being changed, or has just been promoted: wait.
                if isinstance(error, redis.exceptions.NoPermissionError) or not self._proven:
                    raise ConfigurationError(
                        f"the server at {self.address} refuses us: {error}; "
                        "check user and password in FLEET_REDIS_URL"
                    ) from None
                trouble: Exception = error
            except (*_GONE, redis.exceptions.ResponseError) as error:
                if not isinstance(error, _GONE) and not _is_passing(error):
                    raise
                trouble = error
            else:
                self._proven = True
                if attempt:
                    self._back(time.monotonic() - began)
                return answer
            self.interruptions += 1
            away = time.monotonic() - began
            if self.patience is not None and away >= self.patience:
                raise ServerGone(self._farewell(trouble)) from None
            self._complain(trouble, away)
            if isinstance(trouble, redis.exceptions.OutOfMemoryError) and not wait_for_memory:
                raise MemoryFull(_words(trouble)) from None
            if isinstance(trouble, _MOVED) or str(trouble).startswith("UNBLOCKED"):
                await self._turn_away()
            pause = min(_LONGEST_PAUSE, 0.1 * 2 ** min(attempt, 6))
            await asyncio.sleep(random.uniform(0.05, pause))
            attempt += 1

    async def _turn_away(self) -> None:
        """Drop the connections: the name may lead elsewhere by now."""
        if self._channel is not None:
            await self._channel.close()
        await self.client.connection_pool.disconnect(inuse_connections=False)

    # -- saying ------------------------------------------------------------------------------

    def _complain(self, trouble: Exception, seconds: float) -> None:
        """Say it, once for all who wait, and again now and then."""
        now = time.monotonic()
        if now - self._said < _REMINDER:
            return
        self._said = now
        event = "queue.server_away"
        if isinstance(trouble, redis.exceptions.OutOfMemoryError):
            # Only what puts new work in is refused; ending work frees memory and goes on.
            event = "queue.memory_full"
        log.warning(
            event, address=str(self.address), seconds=round(seconds, 1), error=_words(trouble)
        )

    def _back(self, seconds: float) -> None:
        if self._said > 0:
            log.info("queue.server_back", address=str(self.address), seconds=round(seconds, 1))
        self._said = -_REMINDER

    def _farewell(self, trouble: Exception) -> str:
        if isinstance(trouble, redis.exceptions.OutOfMemoryError):
            return (
                f"the memory of the server at {self.address} is full: raise maxmemory there, or "
                "wait until the fleet has worked off what is queued"
            )
        return (
            f"no answer from the server at {self.address}: {_words(trouble)}. "
            "Is it running? Start one with `fleet up`, or set FLEET_REDIS_URL."
        )

    async def check(self) -> str:
        """Refuse a server that could lose work. Returns its name and version.

        Raises `ConfigurationError` saying what to change. What is only doubtful is logged, and
        left in `doubts`.
        """
        info = await self.persist(self._info)
        name = "valkey" if "valkey_version" in info else "redis"
        version = str(info.get("valkey_version") or info["redis_version"])
        if int(str(info["redis_version"]).split(".")[0]) < 7:
            raise ConfigurationError(
                f"{name} {version} at {self.address} is too old: use Valkey, or Redis >= 7"
            )
        if info.get("maxmemory_policy", "noeviction") != "noeviction":
            raise ConfigurationError(
                f"{name} at {self.address} may evict queued work: maxmemory-policy is "
                f"{info['maxmemory_policy']}; set it to noeviction"
            )
        if not info.get("aof_enabled"):
            raise ConfigurationError(
                f"{name} at {self.address} would forget its queue in a crash: "
                "set `appendonly yes` (CONFIG SET appendonly yes)"
            )
        known, self.doubts = self.doubts, _doubts(info, replicated=bool(self.address.service))
        for doubt in self.doubts:
            if doubt not in known:
                log.warning("queue.doubtful", address=str(self.address), problem=doubt)
        await self._tidy()
        return f"{name} {version}"

    async def _tidy(self) -> None:
        try:
            await scripts.forget_old(self.client)
        except (*_GONE, redis.exceptions.ResponseError) as error:
            # No right to list functions, no memory: an old library costs some 20 kB.
            log.warning("queue.old_libraries_stay", error=_words(error))

    async def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = await self.client.info()
        if info.get("loading"):
            # It answers this much already, and says that its append-only file is off.
            raise redis.exceptions.BusyLoadingError("it is loading what it had on disk")
        if info.get("role") == "slave":
            # Waited out like a fail-over, which it may be: the name has not moved yet.
            raise redis.exceptions.ReadOnlyError(
                "it is a read-only replica; name the master, or its sentinels"
            )
        return info


def _is_passing(error: Exception) -> bool:
    # In a pipeline, redis-py puts the command before what the server said.
    said = str(error).rpartition("caused error: ('")[2]
    return isinstance(error, _CANNOT_NOW) or said.startswith(_PASSING)


def _doubts(info: dict[str, Any], *, replicated: bool) -> tuple[str, ...]:
    # INFO has the second line only where min-replicas-to-write is above 0.
    if not (replicated or info.get("connected_slaves")) or "min_slaves_good_slaves" in info:
        return ()
    return (
        "its replicas are asynchronous (min-replicas-to-write is 0): a fail-over may lose what "
        "was acknowledged in the last moment, and such work runs again; "
        "set min-replicas-to-write 1 and min-replicas-max-lag 10",
    )


def _words(trouble: Exception) -> str:
    """Say what went wrong, without the clients that redis-py paints into some of its errors."""
    if isinstance(trouble, redis.asyncio.sentinel.MasterNotFoundError):
        known, _, reasons = str(trouble).partition(" : ")
        asked = "no sentinel answers" if reasons else "the sentinels see it down, or not at all"
        hint = "; check sentinel_password" if "uthenticat" in reasons else ""
        return f"{known} ({asked}{hint})"
    if isinstance(trouble, TimeoutError) and not str(trouble):
        return "it accepts connections and does not answer"
    return (str(trouble).rstrip(".") or type(trouble).__name__)[:200]


def blocking_client(url: str, *, timeout: float = 5.0) -> redis.Redis:
    """A connection of its own for a thread; no retries, and ``timeout`` seconds for each wait."""
    return connect_blocking(
        read(url), socket_timeout=timeout, socket_connect_timeout=timeout, socket_keepalive=True
    )
