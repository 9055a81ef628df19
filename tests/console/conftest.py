"""A client of the service and somebody at a terminal, for the tests of both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer
from fleet import context
from tests.console.serving import Client, serving
from tests.console.terminal import Person, flush


@pytest.fixture
async def client(server: Server, tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(server, tmp_path) as client:
        yield client


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables without line breaks."""
    for console in (context.out, context.err):
        monkeypatch.setattr(console, "_width", 250)


@pytest.fixture
def empty(valkey: EmbeddedServer) -> Iterator[str]:
    """The address of an empty server."""

    flush(valkey.url)
    yield valkey.url


@pytest.fixture
def person(empty: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Person:
    return Person(tmp_path, empty, monkeypatch)
