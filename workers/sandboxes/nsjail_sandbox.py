"""One sandbox as the worker sees it: requests to its agent, replies turned into results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Self
from uuid import uuid4

from pydantic import Field, JsonValue

from common.model import Contract
from workers.sandboxes.channel import Channel, Reply
from workers.sandboxes.protocol import (
    ExecResult,
    FileInfo,
    Limits,
    SandboxLost,
    SandboxPathError,
    Status,
)
from workers.sandboxes.supervisor import Supervisor

BACKEND = "nsjail"
GRACE = 5.0
"""Seconds beyond a program's own timeout before the agent counts as lost."""
FILE_PATIENCE = 30.0
"""Seconds for one file operation, on a machine that is busy with other things."""


class ProgramReply(Contract):
    """What the agent tells about a finished program."""

    status: Status
    exit_code: int | None
    truncated: tuple[bool, bool]
    duration: float = Field(ge=0)
    cpu: float | None
    peak: int | None


class NsjailSandbox:
    """One jail for one episode."""

    backend = BACKEND

    def __init__(
        self,
        limits: Limits,
        jail: Supervisor,
        channel: Channel,
        enforced: dict[str, JsonValue],
        on_close: Callable[[NsjailSandbox], None],
    ) -> None:
        self.id = f"{BACKEND}-{jail.record.slot}-{uuid4().hex[:8]}"
        self.enforced = enforced
        self._limits = limits
        self._jail = jail
        self._on_close = on_close
        self._channel = channel
        self._counters = (0, 0)
        self._born = asyncio.get_running_loop().time()
        self._closing: asyncio.Task[None] | None = None

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
    ) -> ExecResult:
        return await self._program(
            "exec",
            stdin,
            timeout=timeout,
            command=command if isinstance(command, str) else list(command),
            cwd=cwd or "/work",
            env=dict(env or {}),
        )

    async def run_python(
        self, code: str, *, stdin: bytes = b"", timeout: float | None = None
    ) -> ExecResult:
        # A model may write lone surrogates; Python in the jail then says what is wrong with them.
        source = code.encode("utf-8", "surrogatepass")
        return await self._program("python", stdin, source, timeout=timeout)

    async def read_file(self, path: str, *, max_bytes: int | None = None) -> bytes:
        limit = self._limits.read_bytes
        limit = limit if max_bytes is None else min(max_bytes, limit)
        reply = await self._call("read", path=path, limit=limit, patience=FILE_PATIENCE)
        return reply.raw[0]

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        if len(data) > self._limits.file_mb << 20:
            raise SandboxPathError(f"{path}: larger than {self._limits.file_mb} MiB")
        await self._call("write", data, path=path, mode=mode, patience=FILE_PATIENCE)

    async def list_dir(self, path: str = ".") -> list[FileInfo]:
        reply = await self._call("list", path=path, patience=FILE_PATIENCE)
        try:
            return [
                FileInfo(name=name, kind=kind, size=size)
                for name, kind, size in reply.header["entries"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise await self._nonsense(error) from None

    async def is_alive(self) -> bool:
        if self._closing or self._channel.lost or not self._jail.running:
            return False
        if self._channel.busy:
            return True  # it has its own deadline; asking would wait behind it
        try:
            await self._call("ping", patience=GRACE)
        except SandboxLost:
            return False
        return True

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._end(), name=f"close {self.id}")
        # A cancelled caller must not leave a half-ended jail behind.
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _program(
        self,
        op: str,
        stdin: bytes,
        *raw: bytes,
        timeout: float | None,
        **fields: JsonValue | Sequence[str],
    ) -> ExecResult:
        limits = self._limits
        if len(stdin) > limits.file_mb << 20:
            reason = f"stdin is larger than {limits.file_mb} MiB"
            return ExecResult(status="error", exit_code=None, stdout="", stderr=reason, duration=0)
        wall = limits.wall if timeout is None else timeout
        try:
            reply = await self._call(
                op, stdin, *raw, timeout=wall, cap=limits.output_bytes,
                patience=wall + GRACE, **fields,
            )  # fmt: skip
        except SandboxLost as lost:
            if self._jail_counters_moved()[0]:
                # The program's doing, not ours: what it did still is a result.
                reason = f"the sandbox ran out of memory and is gone: {lost}"
                return ExecResult(
                    status="oom", exit_code=None, stdout="", stderr=reason, duration=0
                )
            raise
        header = {key: value for key, value in reply.header.items() if key not in ("id", "raw")}
        try:
            done = ProgramReply.model_validate(header)
            out, err = reply.raw
        except ValueError as error:
            raise await self._nonsense(error) from None
        return ExecResult(
            status=self._why(done.status),
            exit_code=done.exit_code,
            stdout=out.decode("utf-8", "replace"),
            stderr=err.decode("utf-8", "replace"),
            stdout_truncated=done.truncated[0],
            stderr_truncated=done.truncated[1],
            duration=done.duration,
            cpu_seconds=done.cpu,
            peak_memory_bytes=done.peak,
        )

    def _why(self, status: Status) -> Status:
        """Say which limit a failed program ran into, where the kernel counted it."""
        out_of_memory, refused = self._jail_counters_moved()
        if status not in ("error", "killed"):
            return status
        if out_of_memory:
            return "oom"
        return "pids_limit" if refused else status

    def _jail_counters_moved(self) -> tuple[bool, bool]:
        before, self._counters = self._counters, self._jail.counters()
        return self._counters[0] > before[0], self._counters[1] > before[1]

    async def _call(
        self, op: str, *raw: bytes, patience: float, **fields: JsonValue | Sequence[str]
    ) -> Reply:
        if self._closing:
            raise SandboxLost(f"sandbox {self.id} is closed")
        try:
            return await self._channel.call(op, *raw, patience=patience, **fields)
        except SandboxLost as lost:
            raise await self._lost(str(lost)) from None

    async def _nonsense(self, error: Exception) -> SandboxLost:
        return await self._lost(f"its agent sent no proper reply ({error})")

    async def _lost(self, reason: str) -> SandboxLost:
        """Kill what is left of the jail, and say what happened."""
        age = asyncio.get_running_loop().time() - self._born
        if age >= self._limits.ttl:
            reason = f"it lived longer than its ttl of {self._limits.ttl:g} s"
        log = "" if self._closing else await self._jail.log()
        await self.close()
        return SandboxLost(f"sandbox {self.id} is lost: {reason}" + (f" [{log}]" if log else ""))

    async def _end(self) -> None:
        await self._jail.end()
        await self._channel.close()
        self._on_close(self)
