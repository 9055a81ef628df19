"""What a chat model is asked and what it answers, whoever serves it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import Field, JsonValue

from common.failures import ConfigurationError, FailureKind, FleetError
from common.model import Contract
from common.quota.terms import BudgetExceeded
from common.task import Sampling
from common.trajectory import Usage

ToolMode = Literal["native", "schema", "fenced"]
"""How a model is best asked for an action: the provider's own tool calls; a JSON object held to a
schema; or a fenced code block in plain text (small models write good code only there)."""

Parse = Literal["native", "schema", "fenced", "fallback"]
"""How the action was read. `fallback`: a model asked for native calls wrote them as text."""

Source = Literal["api", "embedded", "standin"]
"""Who answered. `standin` once the server says so itself: such answers never leave as data."""

Headers = Mapping[str, str]


class Capabilities(Contract):
    """What is known of one model."""

    tool_mode: ToolMode
    few_shot: bool = False
    """In `schema` mode, open with `common.llm.request.examples`: 9 right of 10 instead of 6."""
    max_context: int = 32_768
    """Tokens."""
    parallel_tools: bool | None = False
    """Sent with the tools as `parallel_tool_calls`; null: the provider does not know the field."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the provider calls the limit on the answer."""
    price: tuple[float, float] | None = None
    """US dollars per million prompt and completion tokens, where we override the price list."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """Sent with every request, e.g. `{"thinking": {"type": "disabled"}}`; a task's own sampling
    wins over it."""


class ModelCall(Contract):
    """One call the model asked for. `error` says why it must not be run: show it to the model."""

    call_id: str
    tool: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    raw_arguments: str = ""
    """As the model wrote them."""
    error: str | None = None


class ModelReply(Contract):
    """One answer, normalised; `message` is what goes back into the chat, verbatim."""

    message: dict[str, Any]
    """The assistant message as the provider sent it, unknown fields (reasoning_content, thought
    signatures) included: these must be echoed."""
    text: str
    """Visible text."""
    thought: str
    """reasoning_content where the provider has it, else the text beside the calls."""
    calls: tuple[ModelCall, ...]
    finish_reason: str
    parse: Parse
    usage: Usage
    model: str = ""
    """As the server names itself; the model asked for where it does not say."""
    source: Source = "api"
    sent: tuple[dict[str, Any], ...] = ()
    """The messages as they really went out, where that is not exactly as given: results of calls
    that were written as text, and unreadable arguments (`common.llm.request`). Go on from them."""
    throttled: float = 0.0
    """Seconds spent waiting for rate limits and for a free slot."""
    duration: float = 0.0
    """Seconds of work: requests and back-off, without `throttled`."""


ErrorType = Literal[
    "rate_limited", "unavailable", "refused", "misconfigured", "budget_exceeded", "cancelled"
]


@dataclass(frozen=True)
class CallRecord:
    """What one `complete` came to; handed to the observer for metrics."""

    provider: str
    model: str
    source: Source
    seconds: float
    """Of work, without `throttled`."""
    throttled: float
    error_type: ErrorType | None
    usage: Usage | None
    retries: int
    faults: tuple[str, ...]
    """One label of `common.llm.faults.LABELS` per failed request, in order."""
    parse: Parse | None
    account: str = ""
    """The scene it was for."""


Observe = Callable[[CallRecord], None]


class ModelFailure(FleetError):
    """A model call that came to nothing."""

    throttled: float = 0.0
    """Seconds it had waited for rate limits and slots: not the task's time."""


class ModelUnavailable(ModelFailure):
    """The provider failed for good within this call's deadline and retries. Infrastructure."""

    kind = FailureKind.NETWORK_ERROR


class ModelRateLimited(ModelUnavailable):
    """429 outlasted its own budget. Infrastructure, with the wait the provider asked for."""

    kind = FailureKind.RATE_LIMITED


class ModelRefused(ModelFailure):
    """The provider understood and said no to this request (400, 422): context overflow and such.
    Sending it again cannot help; the episode ends with `model_error`."""

    kind = FailureKind.MODEL_ERROR


class ModelMisconfigured(ConfigurationError):
    """401, 402, 403 or an unknown model: a person must act; tasks go back uncounted."""

    about_model = False
    """It is the model that is not there, or not for us: if a task named it, the task is wrong."""


class ChatModel(Protocol):
    """One model of one provider."""

    provider: str
    model: str
    source: Source
    capabilities: Capabilities

    async def complete(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        *,
        deadline: float,
        headers: Headers | None = None,
        account: str = "",
    ) -> ModelReply:
        """Ask once. ``deadline``: seconds in all, retries included, waits for 429 not.

        ``headers`` (`x-fleet-task`, `x-fleet-attempt`) reach servers on this machine only.
        ``account``: the scene whose budget pays, besides that of the run.
        Raises `ModelUnavailable`, `ModelRateLimited`, `ModelRefused`, `BudgetExceeded` (all with
        the seconds they had `throttled`), `ModelMisconfigured`.
        """
        ...

    def objection(self, account: str, sampling: Sampling) -> BudgetExceeded | None:
        """Return why a call could not be paid for, from memory; None if it can, or nobody knows."""
        ...

    async def check(self) -> str:
        """One cheap request that proves key and model. Returns a sentence; raises as above."""
        ...

    async def close(self) -> None: ...
