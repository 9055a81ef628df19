"""What a chat model is asked and what it answers, whoever serves it."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import Field, JsonValue

from common.failures import ConfigurationError, FailureKind, FleetError
from common.model import Contract
from common.task import Sampling
from common.trajectory import Usage

ToolMode = Literal["native", "schema", "fenced"]
"""How a model is best asked for an action: the provider's own tool calls; a JSON object held to a
schema; or a fenced code block in plain text (small models write good code only there)."""

Parse = Literal["native", "schema", "fenced", "fallback"]


class Capabilities(Contract):
    """What is known of one model."""

    tool_mode: ToolMode
    max_context: int = 32_768
    """Tokens."""
    parallel_tools: bool = False
    price: tuple[float, float] | None = None
    """US dollars per million prompt and completion tokens, where we override the price list."""
    extra_body: dict[str, JsonValue] = Field(default_factory=dict)
    """Sent with every request, e.g. `{"thinking": {"type": "disabled"}}`."""


class ModelCall(Contract):
    """One call the model asked for. `error` says why the arguments could not be read."""

    call_id: str
    tool: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    raw_arguments: str = ""
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
    throttled: float = 0.0
    """Seconds spent waiting for rate limits."""
    duration: float = 0.0


class ModelUnavailable(FleetError):
    """The provider failed for good within this call's deadline and retries. Infrastructure."""

    kind = FailureKind.NETWORK_ERROR


class ModelRateLimited(ModelUnavailable):
    """429 outlasted its own budget. Infrastructure, with the wait the provider asked for."""

    kind = FailureKind.RATE_LIMITED


class ModelRefused(FleetError):
    """The provider understood and said no to this request (400, 422): context overflow and such.
    Sending it again cannot help; the episode ends with `model_error`."""

    kind = FailureKind.MODEL_ERROR


class ModelMisconfigured(ConfigurationError):
    """401, 402, 403 or an unknown model: a person must act; tasks go back uncounted."""


class ChatModel(Protocol):
    """One model of one provider."""

    provider: str
    model: str
    source: Literal["api", "embedded", "standin"]
    capabilities: Capabilities

    async def complete(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        *,
        deadline: float,
    ) -> ModelReply:
        """Ask once. ``deadline``: seconds in all, retries included, waits for 429 not.

        Raises `ModelUnavailable`, `ModelRateLimited`, `ModelRefused`, `ModelMisconfigured`.
        """
        ...

    async def check(self) -> str:
        """One cheap request that proves key and model. Returns a sentence; raises as above."""
        ...

    async def close(self) -> None: ...
