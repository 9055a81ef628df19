"""What one attempt wrote: everything the model saw, thought, did and caused, and the verdict."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, JsonValue, computed_field

from common.failures import Failure
from common.model import Contract, Written
from common.task import Assignment, Sampling


class StopReason(StrEnum):
    FINISH = "finish"
    MAX_STEPS = "max_steps"
    TIMEOUT = "timeout"
    BUDGET = "budget"
    FAILURE = "failure"
    CANCELLED = "cancelled"


class Blob(Contract):
    """Bytes kept beside the trajectory, named by what they are."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    media_type: str
    bytes: int = Field(ge=0)
    ext: str = Field(pattern=r"^[a-z0-9]{1,8}$")


class Action(Contract):
    """One tool call."""

    tool: str
    arguments: dict[str, JsonValue]
    call_id: str


class Observation(Contract):
    """What came back. `text` is what the model was shown; a cut one has the whole as a blob."""

    text: str
    blobs: tuple[Blob, ...] = ()
    truncated_from: int | None = None
    """Characters of the whole text, where the model saw a cut view of it."""


class Usage(Contract):
    """What the model calls cost, as the provider counted."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    calls: int = 0
    cost_usd: float | None = 0.0
    """US dollars; null where the price of a model is not known, never 0 for that."""
    estimated: bool = False
    """The provider sent no usage; tokens are counted from characters."""

    def __add__(self, other: Usage) -> Usage:
        known = self.cost_usd is not None and other.cost_usd is not None
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            calls=self.calls + other.calls,
            cost_usd=(self.cost_usd or 0.0) + (other.cost_usd or 0.0) if known else None,
            estimated=self.estimated or other.estimated,
        )


class Step(Written):
    """One decision of the agent and what it caused."""

    step_id: int = Field(ge=1)
    thought: str = ""
    action: Action
    observation: Observation
    success: bool
    """The call did what it was asked: no error, exit code 0."""
    exit_code: int | None = None
    """As the process returned it; null where nothing was executed."""
    failure: Failure | None = None
    started_at: float
    """Unix time, seconds."""
    duration: float = Field(ge=0)
    """Seconds the tool took."""
    usage: Usage = Usage()
    """Model calls that led to this step; the first step of a turn carries them."""
    parse: Literal["native", "schema", "fenced", "fallback", "scripted"] = "scripted"
    """How the call was read from the model's answer; `scripted` for oracle and nop."""
    model_source: Literal["api", "embedded", "standin"] | None = None
    """Who served the model; null where none was asked."""
    replayed: bool = False
    """The model's answer was paid for by an earlier attempt at the same unit, one that was killed
    or broke; the action was executed again."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def action_type(self) -> str:
        return self.action.tool

    @computed_field  # type: ignore[prop-decorator]
    @property
    def action_params(self) -> dict[str, JsonValue]:
        return self.action.arguments


class CheckResult(Contract):
    """What one check found."""

    id: str
    passed: bool
    detail: str = Field(default="", max_length=4000)
    """Evidence for a person. May hold expected values: never shown to an agent."""
    reward: float = Field(default=0.0, ge=0, le=1)


class Verdict(Contract):
    """Success as the checks computed it; `passed` is null when the task has no checks."""

    passed: bool | None
    reward: float | None = Field(default=None, ge=0, le=1)
    checks: tuple[CheckResult, ...] = ()


class EnvironmentInfo(Contract):
    """The world the attempt ran in, and the limits that really held."""

    backend: str
    """`nsjail`, `docker`, …; a stand-in's name starts with `standin`."""
    versions: dict[str, str] = Field(default_factory=dict)
    image_digest: str | None = None
    limits: dict[str, JsonValue] = Field(default_factory=dict)
    unsafe: tuple[str, ...] | None = None
    """The promises that did not hold, where the worker was told to go on all the same
    (`--allow-unsafe`); null where it was not told so, and all of them held."""

    @property
    def is_standin(self) -> bool:
        return self.backend.startswith("standin")


class Agent(Contract):
    """Who acted."""

    kind: Literal["llm", "oracle", "nop"]
    model: str | None = None
    provider: str | None = None
    model_source: Literal["api", "embedded", "standin"] | None = None
    """`embedded`: the small model shipped for demonstrations; kept out of exports by default."""
    sampling: Sampling = Sampling()


class Provenance(Contract):
    fleet_version: str
    commit: str | None = None
    worker: str
    host: str
    prompt_sha256: str | None = None
    """Of the system prompt and tool schemas as sent."""


class Trajectory(Written):
    """One attempt, whole. Written once and never changed; a review lies beside it."""

    format_version: Literal[1] = 1
    task_id: str
    revision: int = Field(ge=1)
    sample: int = Field(ge=0)
    attempt_id: str
    """Carries the lease it was made under, so two owners never share a file."""
    trace_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    assignment: Assignment
    """The task as run."""
    task_sha256: str
    agent: Agent
    environment: EnvironmentInfo
    tools: tuple[dict[str, Any], ...] = ()
    """OpenAI function schemas, as shown to the model."""
    messages: tuple[dict[str, Any], ...] = ()
    """The chat as the model saw it; assistant messages as the provider returned them."""
    steps: tuple[Step, ...] = ()
    final_result: str = ""
    stop_reason: StopReason
    malformed_answers: int = 0
    """Model answers that could not be read as a tool call."""
    verdict: Verdict = Verdict(passed=None)
    failure: Failure | None = None
    usage: Usage = Usage()
    """Of all answers in it, the replayed ones included: what the attempt is worth."""
    replayed_usage: Usage = Usage()
    """The part of `usage` that earlier attempts paid; its `calls` counts the replayed answers,
    malformed ones included."""
    started_at: float
    finished_at: float
    throttled: float = 0.0
    """Seconds spent waiting for a provider's rate limit; not counted against the timeout."""
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def success(self) -> bool | None:
        return self.verdict.passed

    @computed_field  # type: ignore[prop-decorator]
    @property
    def total_duration(self) -> float:
        return round(self.finished_at - self.started_at, 6)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def replayed_steps(self) -> int:
        """Steps whose answer was not asked for again; their actions were executed again."""
        return sum(step.replayed for step in self.steps)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def metadata(self) -> dict[str, JsonValue]:
        """The users' `metadata` of the task, with `runtime_id` as their readers expect it."""
        return {**self.assignment.task.metadata, "runtime_id": self.provenance.worker}
