"""Reading long streams a page at a time, so that neither the server nor our memory is held up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from common.queue.connection import Server

_FIRST = 100
_FEWEST, _MOST = 10, 1000
_BYTES = 4 << 20
"""A payload may be a megabyte, and most are a kilobyte: pages are of this size, about."""

Entry = tuple[str, dict[str, str]]
"""Its id, and its fields."""


async def pages(
    server: Server, stream: str, *, low: str = "-", high: str = "+", newest_first: bool = False
) -> AsyncIterator[Entry]:
    """Yield the entries of ``stream`` from ``low`` to ``high``, or the other way round."""
    count = _FIRST

    async def page() -> Any:
        if newest_first:
            return await server.client.xrevrange(stream, max=high, min=low, count=count)
        return await server.client.xrange(stream, min=low, max=high, count=count)

    while True:
        rows: list[Any] = await server.persist(page)
        for entry, fields in rows:
            yield entry.decode(), _text(fields)
        if len(rows) < count:
            return
        beyond = f"({rows[-1][0].decode()}"
        low, high = (low, beyond) if newest_first else (beyond, high)
        size = sum(len(value) for _, fields in rows for value in fields.values()) / len(rows)
        count = max(_FEWEST, min(_MOST, int(_BYTES / max(1.0, size))))


def _text(fields: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
