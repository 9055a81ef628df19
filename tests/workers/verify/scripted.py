"""A sandbox that does what the test says, and the shortest task around a check."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

from pydantic import JsonValue

from common.task import Task
from common.trajectory import CheckResult
from workers.sandboxes.protocol import (
    ExecResult,
    FileInfo,
    SandboxPathError,
    Status,
)

Judge = Callable[..., Awaitable[CheckResult]]


def task_with(*checks: dict[str, Any]) -> Task:
    """Return a task with these checks and nothing else of interest."""
    return Task.model_validate(
        {"task_id": "t", "task_type": "code", "description": "d", "checks": list(checks)}
    )


def ran(
    stdout: str = "", *, exit_code: int | None = 0, status: Status | None = None, stderr: str = ""
) -> ExecResult:
    """Return what a program of this kind would have left."""
    return ExecResult(
        status=status or ("ok" if exit_code == 0 else "error"),
        exit_code=exit_code,
        stdout=stdout,
        stderr=stderr,
        duration=0.01,
    )


class ScriptedSandbox:
    """Isolates and runs nothing: files live in a dict, ``program`` answers every other command."""

    id = "scripted"
    backend = "standin-scripted"

    def __init__(
        self,
        files: Mapping[str, bytes | str] | None = None,
        program: Callable[[ScriptedSandbox, str, bytes], ExecResult] | None = None,
    ) -> None:
        self.enforced: dict[str, JsonValue] = {}
        self.files = {
            path: data.encode() if isinstance(data, str) else data
            for path, data in (files or {}).items()
        }
        self.commands: list[str | Sequence[str]] = []
        self.unwritable: Sequence[str] = ()
        self.immovable: Sequence[str] = ()
        self._program = program

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
    ) -> ExecResult:
        self.commands.append(command)
        if not isinstance(command, str):
            assert command[:3] == ["rm", "-rf", "--"]
            if any(path in self.immovable for path in command[3:]):
                return ran(exit_code=1, stderr="Permission denied")
            for path in command[3:]:
                self.files.pop(path, None)
            return ran()
        assert self._program is not None, f"unexpected command {command!r}"
        return self._program(self, command, stdin)

    async def run_python(
        self, code: str, *, stdin: bytes = b"", timeout: float | None = None
    ) -> ExecResult:
        raise AssertionError("checks run commands only")

    async def read_file(self, path: str, *, max_bytes: int | None = None) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise SandboxPathError(f"{path}: no such file") from None

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        if path in self.unwritable:
            raise SandboxPathError(f"{path}: no space left")
        self.files[path] = data

    async def list_dir(self, path: str = ".") -> list[FileInfo]:
        found = [p for p in self.files if (posixpath.dirname(p) or ".") == path]
        if not found and path != ".":
            raise SandboxPathError(f"{path}: no such folder")
        return [
            FileInfo(name=posixpath.basename(p), kind="file", size=len(self.files[p]))
            for p in found
        ]

    async def is_alive(self) -> bool:
        return True

    async def close(self) -> None:
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None
