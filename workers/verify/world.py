"""What a check may look at, and what every check can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.failures import FailureKind, FleetError
from common.trajectory import CheckResult, Step
from workers.sandboxes.protocol import Sandbox

DETAIL_LIMIT = 500
"""Characters of evidence in one result: enough to see the difference, not a second log."""

GRACE = 120.0
"""Seconds a check may take beyond the programs it runs: a busy host is slow, but not for ever."""


class InvalidTask(FleetError):
    """The task cannot be run or decided as it is written; trying again cannot help."""

    kind = FailureKind.INVALID_TASK


@dataclass(frozen=True)
class World:
    """How an episode ended: what the agent left, said and did."""

    sandbox: Sandbox
    answer: str
    """What the agent gave to `finish`; empty if it never did."""
    steps: Sequence[Step] = ()
    last_stdout: str | None = None
    """All of stdout of the last program the agent ran with exit code 0; None if there was none."""


class Check(Protocol):
    """Decides one fact about how an episode ended."""

    @property
    def id(self) -> str: ...

    @property
    def deadline(self) -> float:
        """Seconds after which the sandbox, not the agent, is to blame for the silence."""
        ...

    def problems(self) -> list[tuple[str, str]]:
        """Return ``(field, reason)`` for everything that makes the check impossible to decide."""
        ...

    async def run(self, world: World) -> CheckResult:
        """Return passed or failed with evidence. `SandboxError` propagates: that is no verdict."""
        ...


def judged(check_id: str, wrong: str | None) -> CheckResult:
    """Return the result of a check: passed when nothing is ``wrong``, else failed with it."""
    if wrong is None:
        return CheckResult(id=check_id, passed=True, reward=1.0)
    return CheckResult(id=check_id, passed=False, detail=clip(wrong), reward=0.0)


def clip(text: str, limit: int = DETAIL_LIMIT) -> str:
    """Return ``text``, or its beginning and end where it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    mark = f" … {len(text) - limit} characters more … "
    tail = (limit - len(mark)) // 3
    return text[: limit - len(mark) - tail] + mark + text[-tail:]


def shown(text: str, limit: int = 100) -> str:
    """Return ``text`` quoted for a message, on one line and not too long."""
    return repr(clip(text, limit))
