"""One sandbox as the worker sees it: requests to its agent, replies turned into results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self
from uuid import uuid4

from pydantic import JsonValue

from common.logs import logger
from workers.sandboxes.agent_seam import Jail, Line, ProgramReply, Said
from workers.sandboxes.channel import Reply
from workers.sandboxes.protocol import (
    ExecResult,
    FileInfo,
    OnOutput,
    Sandbox,
    SandboxLost,
    SandboxPathError,
    SandboxSpent,
    SandboxUnsupported,
    Status,
)
from workers.sandboxes.spec import Limits, SandboxSpec

log = logger("sandbox")

GRACE = 5.0
"""Seconds beyond a program's own timeout before the agent counts as lost."""
FILE_PATIENCE = 30.0
"""Seconds for one file operation, on a machine that is busy with other things."""
MAX_WORDS = 1 << 20
"""Characters of a command with its environment. What kernels take is about as much; what the wire
takes is more, even where JSON needs twelve bytes for a character."""
MAX_PATH = 4096
"""Characters of a path, as for the kernel."""

ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/work",
    "LANG": "C.UTF-8",
    "TMPDIR": "/tmp",
    "USER": "agent",
    # Python takes a module's cache for current when size and second are the same; agents are
    # quick enough to run into that, and would see their old code run.
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""All that programs see besides the environment of their spec; nothing comes from the worker."""


class AgentSandbox:
    """One sandbox with our agent as process 1, for one episode."""

    def __init__(
        self,
        backend: str,
        limits: Limits,
        jail: Jail,
        channel: Line,
        enforced: dict[str, JsonValue],
        on_close: Callable[[AgentSandbox], None],
    ) -> None:
        self.backend = backend
        self.id = f"{backend}-{uuid4().hex[:12]}"
        self.enforced = enforced
        self._limits = limits
        # MiB of what is handed over: the agent holds it in memory, and maybe the file is there too.
        self._largest = min(limits.file_mb, limits.memory_mb // 2)
        self._jail = jail
        self._on_close = on_close
        self._channel = channel
        self._counters = jail.counters()
        self._closing: asyncio.Task[None] | None = None
        self._noting: asyncio.Task[None] | None = None
        self._loss: SandboxLost | None = None
        self._ttl_by = enforced.get("ttl", "agent and worker")
        self._live_for(limits.ttl)

    @classmethod
    async def open(
        cls,
        backend: str,
        spec: SandboxSpec,
        jail: Jail,
        channel: Line,
        enforced: dict[str, JsonValue],
        on_close: Callable[[AgentSandbox], None],
        *,
        env: Mapping[str, str] = ENV,
        memory: int = 0,
        patience: float,
    ) -> AgentSandbox:
        """Set a freshly started agent up, and put the files of the spec in.

        ``memory`` is what it has to watch itself, in bytes; 0 where a control group does. Raises
        `SandboxLost` when the agent does not answer within ``patience`` seconds,
        `SandboxUnsupported` for a file that cannot be.
        """
        await channel.call(
            "setup", env={**env, **spec.env}, cpu=spec.limits.cpu, memory=memory,
            ttl=spec.limits.ttl, patience=patience,
        )  # fmt: skip
        sandbox = cls(backend, spec.limits, jail, channel, enforced, on_close)
        try:
            await put_files(sandbox, spec.files)
        except BaseException:
            sandbox._timer.cancel()
            if sandbox._closing:
                await asyncio.wait([sandbox._closing])
            raise
        return sandbox

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
        background: bool = False,
        on_output: OnOutput | None = None,
    ) -> ExecResult:
        words = [command] if isinstance(command, str) else [*command]
        words += [cwd or "", *(env or {}), *(env or {}).values()]
        if sum(map(len, words)) > MAX_WORDS:
            return not_started("Argument list too long")
        return await self._program(
            "exec",
            stdin,
            timeout=timeout,
            on_output=on_output,
            command=command if isinstance(command, str) else list(command),
            cwd=cwd or "/work",
            env=dict(env or {}),
            background=background,
        )

    async def run_python(
        self,
        code: str,
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: OnOutput | None = None,
    ) -> ExecResult:
        # A model may write lone surrogates; Python in the jail then says what is wrong with them.
        source = code.encode("utf-8", "surrogatepass")
        return await self._program("python", stdin, source, timeout=timeout, on_output=on_output)

    async def end_background(self) -> None:
        await self._call("clear", patience=FILE_PATIENCE)

    async def read_file(self, path: str, *, max_bytes: int | None = None) -> bytes:
        limit = self._limits.read_bytes
        limit = limit if max_bytes is None else min(max_bytes, limit)
        reply = await self._file("read", path, limit=limit)
        return reply.raw[0]

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        if len(data) > self._largest << 20:
            raise SandboxPathError(f"{path[:100]}: larger than {self._largest} MiB")
        await self._file("write", path, data, mode=mode)

    async def list_dir(self, path: str = ".") -> list[FileInfo]:
        reply = await self._file("list", path)
        try:
            return [
                FileInfo(name=name, kind=kind, size=size)
                for name, kind, size in reply.header["entries"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise await self._nonsense(error) from None

    async def keep_alive(self, ttl: float) -> None:
        await self._call("renew", ttl=ttl, patience=GRACE + self._limits.wall)
        self._timer.cancel()
        self._live_for(ttl)

    async def label(self, labels: Mapping[str, str]) -> None:
        if self._closing:
            raise self._gone()
        if self._noting is not None:
            await asyncio.wait([self._noting])  # the later labels are to stay
            if self._closing:
                raise self._gone()
        # Beside everything else: a file is written, and no episode has to wait for a disk.
        note = asyncio.to_thread(self._jail.label, dict(labels))
        self._noting = asyncio.create_task(note, name=f"label {self.id}")

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
            self._timer.cancel()
            self._closing = asyncio.create_task(self._end(), name=f"close {self.id}")
        # A cancelled caller must not leave a half-ended jail behind.
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def _file(self, op: str, path: str, *raw: bytes, **fields: JsonValue) -> Reply:
        if len(path) > MAX_PATH:
            raise SandboxPathError(f"{path[:100]}...: File name too long")
        return await self._call(op, *raw, path=path, patience=FILE_PATIENCE, **fields)

    async def _program(
        self,
        op: str,
        stdin: bytes,
        *raw: bytes,
        timeout: float | None,
        on_output: OnOutput | None,
        **fields: JsonValue | Sequence[str],
    ) -> ExecResult:
        limits = self._limits
        for what, data in zip(("stdin", "the program"), (stdin, *raw), strict=False):
            if len(data) > self._largest << 20:
                return not_started(f"{what} is larger than {self._largest} MiB")
        if self._closing:
            raise self._gone()
        # What programs in the background did before is not the doing of this one.
        self._counters = self._jail.counters()
        wall = limits.wall if timeout is None else timeout
        said = Said(limits.output_bytes, on_output)
        try:
            reply = await self._call(
                op, stdin, *raw, timeout=wall, cap=limits.output_bytes, patience=wall + GRACE,
                stream=on_output is not None, on_piece=said.more, **fields,
            )  # fmt: skip
        except SandboxSpent as spent:  # what the program did still is a result
            return said.result(status="oom", exit_code=None, duration=0, note=str(spent))
        header = {key: value for key, value in reply.header.items() if key not in ("id", "raw")}
        try:
            done = ProgramReply.model_validate(header)
            out, err = reply.raw
            said.more("stdout", out)
            said.more("stderr", err)
        except ValueError as error:
            raise await self._nonsense(error) from None
        return said.result(
            status=self._why(done.status),
            exit_code=done.exit_code,
            stdout_truncated=done.truncated[0],
            stderr_truncated=done.truncated[1],
            duration=done.duration,
            cpu_seconds=done.cpu,
            peak_memory_bytes=done.peak,
            log=done.log,
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

    async def _call(self, op: str, *raw: bytes, patience: float, **fields: Any) -> Reply:
        if self._closing:
            raise self._gone()
        try:
            return await self._channel.call(op, *raw, patience=patience, **fields)
        except SandboxLost as lost:
            raise await self._lost(str(lost)) from None

    async def _nonsense(self, error: Exception) -> SandboxLost:
        return await self._lost(f"its agent sent no proper reply ({error})")

    async def _lost(self, reason: str) -> SandboxLost:
        """Kill what is left of the jail, and say what happened."""
        if asyncio.get_running_loop().time() >= self._timer.when():
            reason = f"it lived longer than its ttl of {self._ttl:g} s"
        said = "" if self._closing else await self._jail.log()
        await self.close()
        detail = f"{reason} [{said}]" if said else reason
        if self._loss is None:
            self._loss = (
                SandboxSpent(f"sandbox {self.id} ran out of memory and is gone: {detail}")
                if self._jail_counters_moved()[0]
                else SandboxLost(f"sandbox {self.id} is lost: {detail}")
            )
        return self._gone()

    def _live_for(self, ttl: float) -> None:
        """End the sandbox after so many seconds; its agent does the same by itself."""
        self._ttl = ttl
        self.enforced["ttl"] = f"{self._ttl_by}: {ttl:g} s"
        self._timer = asyncio.get_running_loop().call_later(ttl, self._expire)

    def _expire(self) -> None:
        reason = f"it lived longer than its ttl of {self._ttl:g} s"
        self._channel.fail(reason)
        if self._closing is None:
            self._loss = SandboxLost(f"sandbox {self.id} is lost: {reason}")
            self._closing = asyncio.create_task(self._end(), name=f"expire {self.id}")

    async def _end(self) -> None:
        try:
            if (noting := self._noting) is not None:
                await asyncio.wait([noting])  # or it would write down a sandbox that is gone
                if error := noting.exception():
                    log.warning("sandbox.unlabelled", sandbox=self.id, error=str(error))
        finally:
            await self._jail.end()
            await self._channel.close()
            self._on_close(self)

    def _gone(self) -> SandboxLost:
        """Return why there is no sandbox any more: what happened first."""
        why = self._loss or SandboxLost(f"sandbox {self.id} is closed")
        return type(why)(str(why))


def not_started(reason: str) -> ExecResult:
    return ExecResult(status="error", exit_code=None, stdout="", stderr=reason, duration=0)


async def put_files(sandbox: Sandbox, files: Mapping[str, bytes]) -> None:
    """Write the files of a spec. Raises `SandboxUnsupported` naming the one that cannot be."""
    for path, data in files.items():
        try:
            await sandbox.write_file(path, data)
        except SandboxPathError as error:
            raise SandboxUnsupported(f"the file {error}") from None
