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
from common.queue import library as scripts
from common.queue.connection import blocking_client
from common.queue.keys import Keys
from common.queue.scene_queue import Lease, SceneQueue

log = logger("heartbeat")

_DEAD_LOOP_LEASES = 12
"""The event loop may be silent for this many leases before we give its work up: a healthy task may
block it for ten."""
_LONGEST_WAIT = 5.0
"""Seconds to wait for the server in one step of a beat, however long the lease."""
_SHORTEST_WAIT = 0.1
_STOP_WAIT = 1.0
_REMINDER = 5.0
"""Seconds between two log lines about missed beats."""


class Heartbeat(threading.Thread):
    """Renews every lease it was given, every third of a lease; writes the worker's card.

    ``on_lost`` is called in the event loop with each lease another consumer has taken over,
    ``on_cancelled`` with each whose task a person has cancelled, again at every beat.

    The arithmetic of a server that accepts and never answers: a beat gives up after a sixth of
    the lease (once to connect, once to ask) and comes again a twelfth later, so that within every
    lease at least two beats are tried, and one that gets through is enough.
    """

    def __init__(
        self,
        url: str,
        *,
        lease: float,
        on_lost: Callable[[Lease], None],
        on_cancelled: Callable[[Lease], None] | None = None,
        card: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._url = url
        self._lease = lease
        self._timeout = min(_LONGEST_WAIT, max(_SHORTEST_WAIT, lease / 6))
        self._on_lost = on_lost
        self._on_cancelled = on_cancelled
        self._card = card
        self._loop = asyncio.get_running_loop()
        self._held: dict[Lease, SceneQueue] = {}
        self._queues: list[SceneQueue] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._pulse = time.monotonic()
        self._loop_dead = False
        self._steady_since: float | None = None
        self._client: redis.Redis | None = None
        self.heard = 0
        """The server's time at the last good beat (ms). Who takes over tells it: a call that waited
        in a frozen server must not act on the silence of owners who could not be heard either."""
        self._memory_full = False
        self._said = -_REMINDER

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
        """The event loop lives. Each beat asks it to call this; others may call it too."""
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
        # It may be waiting for a server that is away; as a daemon it does not hold up our end.
        self.join(timeout=_STOP_WAIT)

    # -- in the thread -----------------------------------------------------------------------

    def run(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            well = self._beat_if_alive()
            period = self._lease / 3 if well else self._lease / 12
            spent = time.monotonic() - began
            if self._ended.wait(period if not well else max(period / 4, period - spent)):
                break
        if self._client is not None:
            self._client.close()

    def _beat_if_alive(self) -> bool:
        """Beat, unless the event loop is dead. Returns False for a beat that must come again soon.

        Nothing that goes wrong may end the thread: it would silently cost every lease.
        """
        try:
            if not self._loop_lives():
                self._steady_since = None
                return True
            self._beat()
            self._steady_since = self._steady_since or time.monotonic()
            return True
        except (redis.exceptions.RedisError, OSError) as error:
            # The next beat connects anew; commits are fenced, so nothing else is needed.
            if not self._ended.is_set() and time.monotonic() - self._said >= _REMINDER:
                self._said = time.monotonic()
                log.warning("heartbeat.missed", error=str(error)[:200], leases=len(self._held))
        except Exception:
            log.exception("heartbeat.bug")
        self._disconnect()
        self._steady_since = None
        return False

    def _loop_lives(self) -> bool:
        """Did the event loop run in the last leases? Asks it to show so by the next beat.

        It is asked itself, and not who works in it: they may all be waiting for the server.
        """
        try:
            self._loop.call_soon_threadsafe(self.pulse)
        except RuntimeError:  # closed: the process is ending
            self._ended.set()
            return False
        dead = time.monotonic() - self._pulse > _DEAD_LOOP_LEASES * self._lease
        if dead != self._loop_dead:
            self._loop_dead = dead
            if dead:
                log.error("heartbeat.loop_dead", leases=len(self._held))
            else:
                log.warning("heartbeat.loop_back", leases=len(self._held))
        return not dead

    def _beat(self) -> None:
        if self._client is None:
            self._client = blocking_client(self._url, timeout=self._timeout)
        with self._lock:
            held = list(self._held.items())
        by_queue: dict[SceneQueue, list[Lease]] = {}
        for lease, queue in held:
            by_queue.setdefault(queue, []).append(lease)
        for queue, leases in by_queue.items():
            self._renew(self._client, queue, leases)
        # `steady` and `heard` tell of the server, not of the leases.
        seconds, micros = self._client.time()
        self.heard = seconds * 1000 + micros // 1000
        self._show_cards(self._client)

    def _renew(self, client: redis.Redis, queue: SceneQueue, leases: list[Lease]) -> None:
        argv: list[Any] = [queue.group, queue.consumer]
        for lease in leases:
            argv += [lease.stream, lease.entry, lease.deliveries, lease.task_id]
        replies = _fcall(client, "renew", (queue.keys.prefix, *queue.streams), argv)
        for lease, reply in zip(leases, replies, strict=True):
            if lease not in self._held:
                continue  # an entry dropped while we asked was committed, not lost
            if reply == 0:
                self._loop.call_soon_threadsafe(self._on_lost, lease)
            elif reply == 2 and self._on_cancelled is not None:
                self._loop.call_soon_threadsafe(self._on_cancelled, lease)

    def _show_cards(self, client: redis.Redis) -> None:
        """Write the worker's card; last, because no lease hangs on it."""
        if self._card is None or not self._queues:
            return
        try:
            card = orjson.dumps(self._card())
        except Exception:  # ours to mend, and nobody's lease
            log.exception("heartbeat.bug")
            return
        try:
            for queue in self._queues:
                key = Keys(queue.scene).card(queue.consumer)
                client.set(key, card, px=int(self._lease * 1500))
            self._memory_full = False
        except redis.exceptions.OutOfMemoryError as error:
            # Renewals go through on a full server; a card does not, and need not.
            if not self._memory_full:
                log.warning("heartbeat.no_card", error=str(error)[:200])
            self._memory_full = True

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close()
            except Exception:  # a broken connection may break its own end
                log.exception("heartbeat.bug")


def _fcall(client: redis.Redis, name: str, keys: tuple[str, ...], argv: list[Any]) -> list[int]:
    version, code = scripts.library()
    call = f"{name}_{version}"
    try:
        return list(client.fcall(call, len(keys), *keys, *argv))
    except redis.exceptions.ResponseError as error:
        if not scripts.is_missing(error):
            raise
    try:
        client.function_load(code)
    except redis.exceptions.ResponseError as error:
        if not scripts.is_loaded_by_another(error):
            raise
    return list(client.fcall(call, len(keys), *keys, *argv))
