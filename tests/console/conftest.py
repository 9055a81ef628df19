"""A client of the service, for the tests of both."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.queue.connection import Server
from tests.console.serving import Client, serving


@pytest.fixture
async def client(server: Server, tmp_path: Path) -> AsyncIterator[Client]:
    async with serving(server, tmp_path) as client:
        yield client
