"""The seam between scenes and isolation: what any sandbox back-end offers, and how it may fail.

A timeout, a memory kill or an output cap is a *result* (`ExecResult.status`): the agent caused it
and sees it. Infrastructure trouble is an *exception* below `SandboxError`: nobody's verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, Self

from pydantic import Field, JsonValue

from common.failures import FailureKind, FleetError
from common.model import Contract
from workers.sandboxes.python_packages import Manifest
from workers.sandboxes.spec import SandboxSpec

Status = Literal["ok", "error", "timeout", "oom", "output_limit", "pids_limit", "killed"]

Capability = Literal["background", "images", "packages", "allowlist"]
"""What not every back-end has: programs that outlive their step, images chosen by the task, the
Python packages prepared on this host, a network with a list of hosts."""

OnOutput = Callable[[Literal["stdout", "stderr"], bytes], None]
"""Called with each piece of output while the program runs, in order for each stream; together
the pieces are what the result keeps. It must not raise."""


class SandboxError(FleetError):
    """The sandbox, not the program in it, gave way."""

    kind = FailureKind.SYSTEM_ERROR


class SandboxStartError(SandboxError):
    """It did not come up. Starting again may help."""


class SandboxUnavailable(SandboxError):
    """Whoever makes sandboxes cannot be reached, or is in trouble. Trying later may help."""

    kind = FailureKind.NETWORK_ERROR


class SandboxQuota(SandboxError):
    """Whoever makes sandboxes has none to give now; `retry_after` says when, where it is known."""

    kind = FailureKind.RATE_LIMITED


class SandboxLost(SandboxError):
    """It was there and is gone; what the agent did in it is lost, so the episode must restart."""

    kind = FailureKind.SANDBOX_LOST


class SandboxSpent(SandboxLost):
    """It is gone because programs in it took all memory there was, its keeper's included.

    The agent's own doing: an observation, and checks that fail; not worth a retry.
    """

    kind = FailureKind.RUNTIME_ERROR


class SandboxUnsupported(SandboxError):
    """This back-end cannot do that; the task is at fault, and a retry would not help."""

    kind = FailureKind.INVALID_TASK


class SandboxPathError(Exception):
    """The agent named a path that is missing, not a file, or not its own: an observation."""


class ExecResult(Contract):
    """What a command did. Text is UTF-8 with undecodable bytes replaced."""

    status: Status
    """`ok`: exit code 0, or started in the background. `error`: any other exit, or it could not
    be started. The rest: stopped by a limit or a signal."""
    exit_code: int | None
    """As returned; 128 + signal where a signal ended it; null where it never started, or where
    it was left running in the background."""
    stdout: str
    stderr: str
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    duration: float = Field(ge=0)
    """Seconds."""
    cpu_seconds: float | None = None
    peak_memory_bytes: int | None = None
    log: str | None = None
    """The file inside that collects both streams of a program started in the background."""


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
    broken: tuple[str, ...] = ()
    """Each promise that is not kept: its name in `enforced`, a colon, and words for an operator;
    without a name where it is about something else. A worker refuses to start with any
    unless it was told `--allow-unsafe`."""
    advice: str = ""
    """What would mend that, as far as it can be seen."""
    packages: Manifest | None = None
    """The Python packages prepared for it, if any are."""


class Sandbox(Protocol):
    """One isolated world for one episode, never used for a second one.

    Every call but `is_alive` and `close` may raise `SandboxLost`, also when the sandbox was closed
    meanwhile. Calls at the same time take turns. A cancelled call stops what it started; the
    sandbox goes on. No call waits longer than its timeout and some seconds of grace.
    """

    id: str
    backend: str
    enforced: dict[str, JsonValue]
    """Each promise and how it is kept, in this sandbox."""

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
        """Run a shell line (str) or a program (sequence) to its end; kill what it leaves.

        A program that cannot be started, or ran into a limit, is a result too. In the
        ``background`` it is only started: it lives until it ends or the sandbox does, later steps
        leave it alone, and the result's `log` names the file with its output. Raises
        `SandboxUnsupported` where that cannot be had.
        """
        ...

    async def run_python(
        self,
        code: str,
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        on_output: OnOutput | None = None,
    ) -> ExecResult:
        """Run a Python program in a fresh process, as `python -c` would, but cheaper."""
        ...

    async def end_background(self) -> None:
        """Kill every program in the background, so that nothing but this call's follower runs."""
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
        """Return the entries, sorted by name. Raises `SandboxPathError`."""
        ...

    async def keep_alive(self, ttl: float) -> None:
        """Let it live ``ttl`` seconds from now, whatever its limits said when it was started."""
        ...

    async def label(self, labels: Mapping[str, str]) -> None:
        """Note whose it is now, soon, for people who look at the host.

        Back-ends whose marks are fixed at the start (docker) keep those of the owner only.
        """
        ...

    async def is_alive(self) -> bool:
        """Say whether it would still answer. Never raises."""
        ...

    async def close(self) -> None:
        """End it and everything in it. Idempotent; never raises; bounded in time."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...


class SandboxProvider(Protocol):
    """Starts sandboxes of one kind, and cleans up after dead owners."""

    backend: str
    capabilities: frozenset[Capability]

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox and put the spec's files into it.

        Raises `SandboxUnsupported` (the spec asks for what this back-end has not),
        `SandboxStartError`, `SandboxUnavailable` and `SandboxQuota` (trying again may help), and
        `ConfigurationError` (only a person can help). Whatever is raised, nothing is left behind.
        """
        ...

    async def probe(self) -> ProbeReport:
        """Start a real sandbox and look what holds.

        Raises `ConfigurationError` if none starts; `SandboxUnavailable` and `SandboxQuota` where
        trying again may help.
        """
        ...

    async def reap(self) -> int:
        """End what killed owners left behind; returns how many sandboxes that were.

        Raises `SandboxUnavailable` and `ConfigurationError` where nobody can be asked.
        """
        ...

    async def close(self) -> None:
        """End every sandbox of this provider. Never raises; bounded in time."""
        ...


def refusal(spec: SandboxSpec, capabilities: frozenset[Capability]) -> str | None:
    """Say why a back-end with these capabilities cannot start such a sandbox; None if it can."""
    if spec.image is not None and "images" not in capabilities:
        return "runs no images"
    if spec.packages and "packages" not in capabilities:
        return "has no prepared Python packages; the image brings its own"
    if spec.network.mode == "allowlist" and "allowlist" not in capabilities:
        return "cannot limit the network to a list of hosts"
    return None
