"""A master, a replica and one real sentinel that alone decides: fail-overs on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import common.tethered
from common.process import free_port
from common.queue.embedded import EmbeddedServer, bundled_valkey
from tests.helpers import eventually

SERVICE = "fleet"
PASSWORD = "of/the@servers"
SENTINEL_PASSWORD = "of:the#sentinels"
_DOWN_AFTER = 500
"""Milliseconds of silence after which the sentinel promotes the replica."""


class Pair:
    """Use as an async context manager; `url` leads to whoever is master."""

    def __init__(self, folder: Path, *, binary: str | None = None) -> None:
        self._folder = folder
        self._binary = binary or bundled_valkey()
        self._port = free_port()
        self._sentinel: subprocess.Popen[bytes] | None = None
        shared = [
            f'masterauth "{PASSWORD}"',
            "repl-diskless-sync-delay 0",
            "repl-ping-replica-period 1",
        ]
        self.master = EmbeddedServer(
            folder / "master", binary=binary, password=PASSWORD, more=shared
        )
        self.replica = EmbeddedServer(
            folder / "replica", binary=binary, password=PASSWORD,
            more=[*shared, f"replicaof 127.0.0.1 {self.master.port}"],
        )  # fmt: skip

    @property
    def url(self) -> str:
        return (
            f"redis+sentinel://:of%2Fthe%40servers@127.0.0.1:1,127.0.0.1:{self._port}/{SERVICE}/0"
            "?sentinel_password=of%3Athe%23sentinels"
        )

    async def __aenter__(self) -> Self:
        self.master.start()
        self.replica.start()
        config = self._folder / "sentinel.conf"
        config.write_text(
            f"port {self._port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f'requirepass "{SENTINEL_PASSWORD}"\n'
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 1\n"
            f'sentinel auth-pass {SERVICE} "{PASSWORD}"\n'
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER}\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        with (self._folder / "sentinel.log").open("ab") as log:
            self._sentinel = subprocess.Popen(
                [sys.executable, "-I", "-S", common.tethered.__file__, str(os.getpid()),
                 self._binary, str(config), "--sentinel"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        await eventually(self._watches_both, "the sentinel knows master and replica")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._sentinel is not None:
            self._sentinel.terminate()
            self._sentinel.wait(10)
        self.replica.stop()
        self.master.stop()

    def demote(self) -> None:
        """Have the sentinel change the roles while both servers are well."""
        client = redis.Redis(port=self._port, password=SENTINEL_PASSWORD)
        client.execute_command("SENTINEL", "FAILOVER", SERVICE)
        client.close()

    def _watches_both(self) -> bool:
        client = redis.Redis(
            port=self._port, password=SENTINEL_PASSWORD, retry=Retry(NoBackoff(), 0)
        )
        try:
            replicas = client.sentinel_slaves(SERVICE)
            return len(replicas) == 1 and replicas[0].get("master-link-status") == "ok"
        except (redis.exceptions.RedisError, OSError):
            return False
        finally:
            client.close()

    async def replicated(self) -> None:
        """Wait until the replica has all the master has acknowledged."""
        clients = [
            redis.Redis(port=s.port, password=PASSWORD, retry=Retry(NoBackoff(), 0))
            for s in (self.master, self.replica)
        ]

        def level() -> bool:
            there, here = (c.info("replication") for c in clients)
            return bool(there["master_repl_offset"] == here["slave_repl_offset"])

        try:
            await eventually(level, "the replica has caught up")
        finally:
            for client in clients:
                client.close()
