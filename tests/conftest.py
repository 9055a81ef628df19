"""Real servers for the tests, started on free ports and stopped afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer

# Tests beside each other are told the width of a terminal that none of them has.
os.environ.pop("COLUMNS", None)


@pytest.fixture(autouse=True)
def own_logs() -> Iterator[None]:
    """What a command or a process set up in a test must not swallow the next one's logs."""
    yield
    if structlog.is_configured():
        structlog.reset_defaults()
        structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def debian_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.fail("redis-server is missing: apt-get install redis-server (make test does it)")
    server = EmbeddedServer(tmp_path_factory.mktemp("redis"), binary=binary)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def server(valkey: EmbeddedServer) -> AsyncIterator[Server]:
    """An empty Valkey."""
    server = Server(valkey.url, patience=20)
    await server.client.flushall()
    yield server
    await server.close()


@pytest.fixture(params=["valkey", "redis7"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """An empty server, once Valkey and once Debian's Redis 7."""
    fixture = "valkey" if request.param == "valkey" else "debian_redis"
    server = Server(request.getfixturevalue(fixture).url, patience=20)
    await server.client.flushall()
    yield server
    await server.close()


@pytest.fixture
def repo() -> Path:
    return Path(__file__).parent.parent
