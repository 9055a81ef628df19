"""Keeps leases alive from a thread of its own, so that a busy event loop costs no healthy job."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import orjson
import redis

from common.logs import logger
from common.queue.connection import blocking_client, library
from common.queue.keys import Keys
from common.queue.scene_queue import Lease, SceneQueue

log = logger("heartbeat")

_DEAD_LOOP_LEASES = 5
"""The event loop may be silent for this many leases before we give its work up."""


class Heartbeat(threading.Thread):
    """Renews every lease it was given, every third of a lease; writes the worker's card.

    ``on_lost`` is called in the event loop with each lease another consumer has taken over.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float,
        on_lost: Callable[[Lease], None],
        card: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._url = url
        self._lease = lease
        self._on_lost = on_lost
        self._card = card
        self._loop = asyncio.get_running_loop()
        self._held: dict[Lease, SceneQueue] = {}
        self._queues: list[SceneQueue] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._pulse = time.monotonic()
        self._steady_since: float | None = None
        self._client: redis.Redis | None = None

    def announce(self, queue: SceneQueue) -> None:
        """Write a card for this consumer under ``queue``'s scene from now on."""
        self._queues.append(queue)

    def hold(self, queue: SceneQueue, lease: Lease) -> None:
        with self._lock:
            self._held[lease] = queue

    def drop(self, lease: Lease) -> None:
        with self._lock:
            self._held.pop(lease, None)

    def pulse(self) -> None:
        """Called from the event loop now and then: it lives."""
        self._pulse = time.monotonic()

    @property
    def steady(self) -> bool:
        """Has every beat of a whole lease reached the server?

        After an outage everybody's entries look abandoned. Who waits for this before taking over
        gives every living owner the time to renew.
        """
        since = self._steady_since
        return since is not None and time.monotonic() - since >= self._lease

    def stop(self) -> None:
        self._ended.set()
        self.join(timeout=6.0)

    def run(self) -> None:
        while True:
            if time.monotonic() - self._pulse > _DEAD_LOOP_LEASES * self._lease:
                log.error("heartbeat.loop_dead", leases=len(self._held))
            else:
                try:
                    self._beat()
                    self._steady_since = self._steady_since or time.monotonic()
                except (redis.exceptions.RedisError, OSError) as error:
                    # The next beat connects anew; commits are fenced, so nothing else is needed.
                    log.warning("heartbeat.missed", error=str(error)[:200])
                    self._client = None
                    self._steady_since = None
            if self._ended.wait(self._lease / 3):
                return

    def _beat(self) -> None:
        client = self._client = self._client or blocking_client(self._url)
        client.ping()
        with self._lock:
            held = list(self._held.items())
        by_queue: dict[SceneQueue, list[Lease]] = {}
        for lease, queue in held:
            by_queue.setdefault(queue, []).append(lease)
        for queue, leases in by_queue.items():
            argv: list[Any] = [queue.group, queue.consumer]
            for lease in leases:
                argv += [lease.stream, lease.entry, lease.deliveries]
            keys = (queue.keys.prefix, *queue.streams)
            replies = _fcall(client, "renew", keys, argv)
            for lease, alive in zip(leases, replies, strict=True):
                # An entry dropped while we asked was committed, not lost.
                if not alive and lease in self._held:
                    self._loop.call_soon_threadsafe(self._on_lost, lease)
        if self._card is not None and self._queues:
            card = orjson.dumps(self._card())
            for queue in self._queues:
                key = Keys(queue.scene).card(queue.consumer)
                client.set(key, card, px=int(self._lease * 1500))


def _fcall(client: redis.Redis, name: str, keys: tuple[str, ...], argv: list[Any]) -> list[int]:
    version, code = library()
    call = f"{name}_{version}"
    try:
        return list(client.fcall(call, len(keys), *keys, *argv))
    except redis.exceptions.ResponseError as error:
        if "Function not found" not in str(error):
            raise
    client.function_load(code, replace=True)
    return list(client.fcall(call, len(keys), *keys, *argv))
