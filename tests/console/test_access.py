"""The service's way to a server that others want to have, too."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from common.queue.connection import Server
from console.access import Access, Lent
from console.desk import Desk
from tests.helpers import eventually


class Owner:
    """Lends a server, and wants it back; giving it back may break."""

    def __init__(self, url: str, trouble: Exception) -> None:
        self.url, self.trouble = url, trouble
        self.lent = self.asked = 0
        self.wants = False
        self.threads: set[int] = set()

    @contextmanager
    def find(self) -> Iterator[Lent]:
        self.lent += 1
        yield Lent(self.url, ours=True)
        self.wants = False
        if self.lent == 1:
            raise self.trouble

    def wanted(self) -> bool:
        self.asked += 1
        self.threads.add(threading.get_ident())
        return self.wants


@pytest.mark.parametrize(
    "trouble", [OSError(28, "no space left"), subprocess.TimeoutExpired("valkey", 1.0)]
)
async def test_a_server_that_could_not_be_given_back_is_not_the_last_to_be_asked_for(
    server: Server, tmp_path: Path, trouble: Exception
) -> None:
    owner = Owner(server.url, trouble)

    async def open_desk(server: Server) -> Desk:
        return Desk(server, tmp_path, ledger_ttl=60.0)

    with capture_logs() as told:
        async with Access(owner.find, owner.wanted, open_desk) as access:
            for _ in range(2):
                async with access() as desk:
                    assert await desk.pending() == []
                owner.wants = True
                await eventually(lambda: not owner.wants, "it is given back", within=5)
        said = [line["event"] for line in told]
    assert said == ["console.not_given", "console.gave_way"]
    assert owner.lent == 2
    assert threading.get_ident() not in owner.threads
