"""What an `AgentSandbox` stands on: what its agent runs in, the line to it, and what it replies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import Field, JsonValue

from common.model import Contract
from workers.sandboxes.channel import OnPiece, Reply
from workers.sandboxes.protocol import ExecResult, OnOutput, Status


class Jail(Protocol):
    """What an agent runs in, and all that has to go when it goes."""

    @property
    def running(self) -> bool: ...

    async def log(self) -> str:
        """Return what was complained about, and how it ended if it did."""
        ...

    def counters(self) -> tuple[int, int]:
        """Return (processes killed for memory, processes refused), as far as the host counts."""
        ...

    def label(self, labels: Mapping[str, str]) -> None:
        """Note whose it is now; called in another thread, may wait for a disk. Raises `OSError`."""
        ...

    async def end(self) -> None:
        """Kill it and remove all traces. Never raises, takes seconds at most; idempotent."""
        ...


class Line(Protocol):
    """How requests get to the agent, one at a time: a `Channel`, or what acts like one."""

    lost: str | None

    @property
    def busy(self) -> bool: ...

    async def call(
        self,
        op: str,
        *raw: bytes,
        patience: float,
        on_piece: OnPiece | None = None,
        **fields: JsonValue | Sequence[str],
    ) -> Reply: ...

    def fail(self, reason: str) -> None: ...

    async def close(self) -> None: ...


class ProgramReply(Contract):
    """What the agent tells about a finished program."""

    status: Status
    exit_code: int | None = Field(ge=0, le=255)
    truncated: tuple[bool, bool]
    duration: float = Field(ge=0, le=1e9)
    cpu: float | None = Field(ge=0, le=1e9)
    peak: int | None = Field(ge=0, lt=1 << 53)
    log: str | None = None


class Said:
    """What a program wrote so far; more than its cap is nonsense."""

    def __init__(self, cap: int, tell: OnOutput | None) -> None:
        self._cap = cap
        self._tell = tell
        self._parts = {"stdout": bytearray(), "stderr": bytearray()}

    def more(self, stream: Literal["stdout", "stderr"], piece: bytes) -> None:
        """Take a piece. Raises `ValueError` for an unknown stream, or too much."""
        if stream not in self._parts or len(self._parts[stream]) + len(piece) > self._cap:
            raise ValueError(f"{len(piece)} bytes more of {stream!r}")
        self._parts[stream] += piece
        if piece and self._tell is not None:
            self._tell(stream, piece)

    def result(self, *, note: str = "", **fields: Any) -> ExecResult:
        out, err = (part.decode("utf-8", "replace") for part in self._parts.values())
        return ExecResult(stdout=out, stderr=err + note, **fields)
