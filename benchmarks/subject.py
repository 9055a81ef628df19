"""Starting a process that is measured, hearing from it, and ending it whatever happens."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent


class SubjectFailed(Exception):
    """The process ended, or said nothing in time; the message holds its last words."""


class Subject:
    """One process; its standard output is lines of text or JSON, its standard error is kept."""

    def __init__(
        self, arguments: list[str], *, folder: Path, env: dict[str, str] | None = None,
        python: Path | None = None,
    ) -> None:  # fmt: skip
        self._name = next((a for a in arguments if not a.startswith("-")), arguments[0])
        self._errors = (folder / f"{self._name.replace('/', '_')}-{time.monotonic_ns()}.log").open(
            "w+b"
        )
        self._rest = b""
        self._process = subprocess.Popen(
            [str(python or sys.executable), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def line(self, timeout: float) -> str:
        """Return its next line. Raises `SubjectFailed` after ``timeout`` seconds, or at its end."""
        assert self._process.stdout is not None
        deadline, fd = time.monotonic() + timeout, self._process.stdout.fileno()
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([fd], [], [], left)[0]:
                raise SubjectFailed(f"{self._name}: nothing within {timeout:.0f} s{self._words()}")
            more = os.read(fd, 1 << 20)
            if not more:
                code = self._process.wait(10)
                raise SubjectFailed(f"{self._name}: ended with code {code}{self._words()}")
            self._rest += more
        first, _, self._rest = self._rest.partition(b"\n")
        return first.decode(errors="replace")

    def result(self, timeout: float) -> dict[str, Any]:
        """Return the next line that is a JSON object; other lines are passed over."""
        deadline = time.monotonic() + timeout
        while True:
            text = self.line(max(0.1, deadline - time.monotonic()))
            if text.startswith("{"):
                found: dict[str, Any] = json.loads(text)
                return found

    def alive(self) -> None:
        """Raise `SubjectFailed` with its last words if it has ended."""
        if (code := self._process.poll()) is not None:
            raise SubjectFailed(f"{self._name}: ended with code {code}{self._words()}")

    def go(self) -> None:
        """Let a process begin that waits for a line on its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self._process.terminate()

    def _words(self) -> str:
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {' | '.join(words[-3:])[-400:]}" if words else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._errors.close()
