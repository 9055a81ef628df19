"""Connections that bring no request are closed in time, so that they keep nobody out."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_MOST = 100
"""Connections at once."""
_EACH = 48
"""Of one address."""
_HEADER = 10.0
"""Seconds for a whole header, from its first byte or the connection on."""
_ANSWER = 40.0
"""Seconds for a request and its answer; the application gives up on it earlier."""
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nCache-Control: no-store\r\n"
    b"Content-Length: 0\r\nConnection: close\r\n\r\n"
)


class Connection(H11Protocol):
    """One client's connection. Where there are too many, the one that idles longest makes room."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._timer: asyncio.TimerHandle | None = None
        self._idles = False
        self._since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        every = [c for c in self.connections if isinstance(c, Connection) and not c.closing]
        mine = [c for c in every if c.address == self.address]
        for found, most in ((mine, _EACH), (every, _MOST)):
            if len(found) > most:
                self._make_room([c for c in found if c is not self])
                return

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch(anew=True)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._timer is not None:
            self._timer.cancel()

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def closing(self) -> bool:
        return self.transport.is_closing()

    def _make_room(self, others: list[Connection]) -> None:
        idle = min((c for c in others if c._idles), key=lambda c: c._since, default=None)
        if idle is not None:
            idle.transport.abort()
            return
        self.transport.write(_FULL)
        self.transport.close()

    def _watch(self, *, anew: bool = False) -> None:
        """Bound what comes now, a header or an answer; more bytes of the same give no more time."""
        idles = self.cycle is None or self.cycle.response_complete
        if self._timer is not None and idles == self._idles and not anew:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._idles, self._since = idles, self.loop.time()
        seconds = _HEADER if idles else _ANSWER
        self._timer = self.loop.call_later(seconds, self.transport.abort)
