"""What can go wrong, in one table: every failure has a kind, and every kind belongs to one class.

The class decides what happens next:

* ``agent``: the attempt is a valid, failed trajectory. It is committed and reviewed.
* ``infrastructure``: nobody's fault but ours. The attempt is kept as evidence, retried with
  back-off, and dead-lettered once its retry budget is spent. It is never a reward of 0.
* ``task``: running it again cannot help. Dead letter at once, with the reason.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, computed_field

from common.model import Written


class FailureClass(StrEnum):
    AGENT = "agent"
    INFRASTRUCTURE = "infrastructure"
    TASK = "task"


class FailureKind(StrEnum):
    TIMEOUT = "timeout"
    NETWORK_ERROR = "network_error"
    COMPILE_ERROR = "compile_error"
    RUNTIME_ERROR = "runtime_error"
    BROWSER_ERROR = "browser_error"
    SYSTEM_ERROR = "system_error"
    MODEL_ERROR = "model_error"
    RATE_LIMITED = "rate_limited"
    SANDBOX_LOST = "sandbox_lost"
    DEVICE_LOST = "device_lost"
    BUDGET_EXCEEDED = "budget_exceeded"
    INVALID_TASK = "invalid_task"
    CANCELLED = "cancelled"


CLASS_OF: dict[FailureKind, FailureClass] = {
    # The agent used up its own time, wrote a wrong program, or never gave a well-formed answer.
    FailureKind.TIMEOUT: FailureClass.AGENT,
    FailureKind.COMPILE_ERROR: FailureClass.AGENT,
    FailureKind.RUNTIME_ERROR: FailureClass.AGENT,
    FailureKind.MODEL_ERROR: FailureClass.AGENT,
    # Something under the agent gave way.
    FailureKind.NETWORK_ERROR: FailureClass.INFRASTRUCTURE,
    FailureKind.BROWSER_ERROR: FailureClass.INFRASTRUCTURE,
    FailureKind.SYSTEM_ERROR: FailureClass.INFRASTRUCTURE,
    FailureKind.RATE_LIMITED: FailureClass.INFRASTRUCTURE,
    FailureKind.SANDBOX_LOST: FailureClass.INFRASTRUCTURE,
    FailureKind.DEVICE_LOST: FailureClass.INFRASTRUCTURE,
    # The task itself cannot be run as it stands.
    FailureKind.BUDGET_EXCEEDED: FailureClass.TASK,
    FailureKind.INVALID_TASK: FailureClass.TASK,
    FailureKind.CANCELLED: FailureClass.TASK,
}


class Failure(Written):
    """Why an attempt, or one of its steps, did not go well."""

    kind: FailureKind
    message: str = Field(max_length=4000)
    """What happened, to what, and where it helps, what to do. Never a secret."""
    retry_after: float | None = Field(default=None, ge=0)
    """Seconds the other side asked us to wait, where it said so."""

    @computed_field(alias="class")  # type: ignore[prop-decorator]
    @property
    def failure_class(self) -> FailureClass:
        """Who is to blame; from the table above, never stored by hand."""
        return CLASS_OF[self.kind]


class FleetError(Exception):
    """A failure on its way to the boundary that decides. ``str()`` is a sentence for a person."""

    kind: FailureKind = FailureKind.SYSTEM_ERROR

    def __init__(
        self, message: str, *, kind: FailureKind | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        if kind is not None:
            self.kind = kind
        self.retry_after = retry_after

    def as_failure(self) -> Failure:
        return Failure(kind=self.kind, message=str(self)[:4000], retry_after=self.retry_after)


class ConfigurationError(Exception):
    """The operator must change something; the process exits non-zero instead of retrying."""


class LeaseLost(Exception):
    """Another consumer owns the entry now; whatever we did for it is dropped."""
