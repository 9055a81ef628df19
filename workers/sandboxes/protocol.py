"""The seam between scenes and isolation: what any sandbox back-end offers, and how it may fail.

A timeout, a memory kill or an output cap is a *result* (`ExecResult.status`): the agent caused it
and sees it. Infrastructure trouble is an *exception* below `SandboxError`: nobody's verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, Self

from pydantic import Field, JsonValue

from common.failures import FailureKind, FleetError
from common.model import Contract

Status = Literal["ok", "error", "timeout", "oom", "output_limit", "pids_limit", "killed"]


class SandboxError(FleetError):
    """The sandbox, not the program in it, gave way."""

    kind = FailureKind.SYSTEM_ERROR


class SandboxStartError(SandboxError):
    """It did not come up. Starting again may help."""


class SandboxLost(SandboxError):
    """It was there and is gone; what the agent did in it is lost, so the episode must restart."""

    kind = FailureKind.SANDBOX_LOST


class SandboxUnsupported(SandboxError):
    """This back-end cannot do that; a configuration error, not worth a retry."""

    kind = FailureKind.INVALID_TASK


class SandboxPathError(Exception):
    """The agent named a path that is missing, not a file, or not its own: an observation."""


class Limits(Contract):
    """What one sandbox may use. Every one is enforced, or `probe` says that it is not."""

    wall: float = Field(default=30.0, gt=0)
    """Seconds for one `exec` without a timeout of its own."""
    ttl: float = Field(default=600.0, gt=0)
    """Seconds the whole sandbox may live; it is killed afterwards whatever happens."""
    cpu: float = Field(default=300.0, gt=0)
    """Seconds of processor time for each process."""
    memory_mb: int = Field(default=512, ge=16)
    """Of all its processes together; where a cgroup counts, files in /work and /tmp included."""
    pids: int = Field(default=64, ge=4)
    disk_mb: int = Field(default=64, ge=1)
    """Of the work folder; /tmp has as much again."""
    inodes: int = Field(default=4096, ge=16)
    file_mb: int = Field(default=64, ge=1)
    """The largest single file."""
    open_files: int = Field(default=256, ge=16)
    output_bytes: int = Field(default=1 << 20, ge=1024)
    """Of stdout, and of stderr, for one `exec`; the program is stopped when it writes more."""
    read_bytes: int = Field(default=10 << 20, ge=1024)
    """The largest file `read_file` returns."""


class SandboxSpec(Contract):
    """One sandbox to start."""

    limits: Limits = Limits()
    network: Literal["none", "loopback"] = "none"
    """`none` still has its own loopback interface, reaching nothing outside the sandbox."""
    env: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    """Owner marks for the reaper: worker, task, attempt."""


class ExecResult(Contract):
    """What a command did. Text is UTF-8 with undecodable bytes replaced."""

    status: Status
    """`ok`: exit code 0. `error`: any other exit. The rest: stopped by a limit or a signal."""
    exit_code: int | None
    """As returned; 128 + signal where a signal ended it; null where it never started."""
    stdout: str
    stderr: str
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    duration: float = Field(ge=0)
    """Seconds."""
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None


class FileInfo(Contract):
    name: str
    kind: Literal["file", "dir", "symlink", "other"]
    size: int


class ProbeReport(Contract):
    """What really starting a sandbox showed."""

    backend: str
    versions: dict[str, str]
    enforced: dict[str, JsonValue]
    """Each promise and how it is kept, e.g. `{"memory": "cgroup v1", "network": "namespace"}`."""


class Sandbox(Protocol):
    """One isolated world for one episode. Every call may raise `SandboxLost`."""

    id: str
    backend: str
    enforced: dict[str, JsonValue]

    async def exec(
        self,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float | None = None,
    ) -> ExecResult:
        """Run a shell line (str) or a program (sequence) to its end; kill what it leaves behind."""
        ...

    async def run_python(
        self, code: str, *, stdin: bytes = b"", timeout: float | None = None
    ) -> ExecResult:
        """Run a Python program in a fresh process, as `python -c` would, but cheaper."""
        ...

    async def read_file(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """Return a regular file's content. Raises `SandboxPathError`; also when it is larger."""
        ...

    async def write_file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Replace or create a file, with its parents; a link at its place is replaced too.

        Raises `SandboxPathError`, also when the disk is full.
        """
        ...

    async def list_dir(self, path: str = ".") -> list[FileInfo]:
        """Raises `SandboxPathError`."""
        ...

    async def is_alive(self) -> bool: ...

    async def close(self) -> None:
        """End it and everything in it. Idempotent; never raises; bounded in time."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


class SandboxProvider(Protocol):
    """Starts sandboxes of one kind, and cleans up after dead owners."""

    backend: str

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Raises `SandboxStartError`, `SandboxUnsupported`."""
        ...

    async def probe(self) -> ProbeReport:
        """Start a real sandbox and look. Raises `ConfigurationError` where isolation is missing."""
        ...

    async def reap(self) -> int:
        """End what killed owners left on this host; returns how many sandboxes that were."""
        ...

    async def close(self) -> None: ...
