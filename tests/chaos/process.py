"""A process of the fleet that a test kills, stops, continues, cuts off and starts again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.chaos.proxy import Proxy
from tests.e2e.fleet import environment


class Victim:
    """One role (a worker, a reviewer, the dispatcher) behind a proxy of its own."""

    def __init__(
        self, name: str, argv: list[str], folder: Path, proxy: Proxy, **env: object
    ) -> None:
        self.name = name
        self.proxy = proxy
        self.log = folder / f"{name}.log"
        self.busy = False
        """Stopped or cut off: no victim for another fault now."""
        self._argv = [sys.executable, "-m", *argv]
        self._env = environment(FLEET_REDIS_URL=proxy.url, **env)
        self._begin = 0
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self._begin = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._argv, env=self._env, stdout=log, stderr=log, start_new_session=True
            )

    @property
    def consumer(self) -> str:
        """Its name in the queue; '' before it has said so."""
        with self.log.open("rb") as log:
            log.seek(self._begin)
            for row in log:
                if b'"worker_id"' in row and row.endswith(b"\n"):
                    return str(json.loads(row)["worker_id"])
        return ""

    def stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it; nothing of it runs when this returns."""
        self.process.kill()
        self.process.wait(10)

    def start_again(self) -> None:
        self.process = self._start()

    def end(self) -> int:
        """End it in order, by force after 20 seconds; returns the exit code."""
        if self.process.poll() is None:
            self.go_on()
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait(10)
