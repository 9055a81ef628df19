"""Connections that ask nothing, ask slowly, or are too many."""

from __future__ import annotations

import asyncio

import pytest

from console import connections
from tests.console.serving import ANA, Client
from tests.helpers import eventually


async def test_connections_that_ask_nothing_keep_nobody_out(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(client.url.rpartition(":")[2])
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(110)]
    assert (await client.get())[0] == 200
    for _, writer in idle:
        writer.close()

    monkeypatch.setattr(connections, "_HEADER", 0.3)
    halves = (
        b"",
        b"GET / HTTP/1.1\r\nHost:",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n",
    )
    for half in halves:  # the last is answered, and closed though its body goes on
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(half)
        closed = asyncio.create_task(reader.read())
        while not closed.done():
            writer.write(b"x" if half else b"")
            await asyncio.wait({closed}, timeout=0.1)
        assert (b"421" in closed.result()) == half.startswith(b"POST")
        writer.close()


async def test_where_all_are_asking_another_is_told_to_come_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "_EACH", 2)
    port = int(client.url.rpartition(":")[2])
    asked = (
        f"POST /api/approvals/red1/approve HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
        f"Authorization: Bearer {ANA}\r\nContent-Type: application/json\r\n\r\n{{"
    )
    asking = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
    for _, writer in asking:
        writer.write(asked.encode())

    async def refused() -> bool:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        told = await reader.read()
        writer.close()
        return told.startswith(b"HTTP/1.1 503")

    await eventually(refused, "both are asking")
    for reader, writer in asking:
        writer.write(b"}")
        assert (await reader.read(100)).startswith(b"HTTP/1.1 404")
        writer.close()
