"""Asks one model of one OpenAI-compatible provider: shape → send → read → count.

A provider is never changed within a chat: its history (thought signatures, reasoning) is private
to it, and a trajectory has one model.
"""

from __future__ import annotations

import ipaddress
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import httpx2
import openai

from common import __version__
from common.failures import ConfigurationError
from common.llm.cost import cost, usage_of
from common.llm.faults import Transient, of_status, read_body, scrub
from common.llm.pacing import Backoff, Call, Pacer
from common.llm.parse import read_answer, with_ids
from common.llm.providers import ProviderConfig, choose
from common.llm.request import Request, encode, shape
from common.llm.types import (
    CallRecord,
    ChatModel,
    ErrorType,
    Headers,
    ModelMisconfigured,
    ModelRateLimited,
    ModelRefused,
    ModelReply,
    ModelUnavailable,
    Observe,
    Source,
)
from common.settings import Settings
from common.task import Sampling

_CHECK_DEADLINE = 30.0  # seconds
_USER_AGENT = f"trajectory-fleet/{__version__}"


def connect(settings: Settings, *, observe: Observe | None = None) -> list[ChatModel]:
    """Return the models the settings configure, the one to use first; close each in the end.

    They share one pool of connections. Raises `ConfigurationError` as `choose` does, and when the
    embedded model is all there is but none is running.
    """
    configs = choose(settings)
    pool = Pool()
    models: list[ChatModel] = [OpenAIChat(one, pool=pool, observe=observe) for one in configs]
    for one in configs:
        cost(one, one.model, 0, 0, 0)  # loads the price list now, not in the first call
    return models


class Pool:
    """The connections of this process, shared by all its models; closed with the last of them."""

    def __init__(self) -> None:
        # No limit on reading: each call has a total deadline. Idle connections go before servers
        # drop them (uvicorn, and so vLLM, after 5 s), which would cost a retry.
        self.http = openai.DefaultAioHttpClient(
            timeout=httpx2.Timeout(None, connect=10.0),
            limits=httpx2.Limits(max_connections=1000, keepalive_expiry=4.5),
        )
        self._users = 0

    def share(self) -> Pool:
        self._users += 1
        return self

    async def release(self) -> None:
        self._users -= 1
        if self._users == 0:
            await self.http.aclose()


class OpenAIChat:
    """One model of one provider that speaks OpenAI's chat completions. Implements `ChatModel`."""

    def __init__(
        self,
        config: ProviderConfig,
        *,
        pool: Pool | None = None,
        observe: Observe | None = None,
        backoff: Backoff | None = None,
        trace_headers: bool | None = None,
    ) -> None:
        """Make a client; nothing is sent yet.

        ``trace_headers``: pass the `headers` of a call on to the server. Default: only to one on
        this machine, since other people's servers have no business with our ids.
        """
        if config.base_url is None:
            raise ConfigurationError(
                "no model provider is configured, and the embedded model is not running: set the "
                "key of one (say FLEET_DEEPSEEK_API_KEY), or start it with `fleet up`, or run "
                "`python -m common.llm.embedded` and set FLEET_EMBEDDED_URL and FLEET_EMBEDDED_KEY"
            )
        self.provider: str = config.name
        self.model: str = config.model
        self.source: Source = config.source
        self.capabilities = config.capabilities
        self._config = config
        self._observe = observe
        self._trace = is_loopback(config.base_url) if trace_headers is None else trace_headers
        self._pacer = Pacer(config.name, config.concurrency, backoff or Backoff())
        self._pool = (pool or Pool()).share()
        self._url = httpx2.URL(config.base_url.rstrip("/") + "/chat/completions")
        self._headers = {"Content-Type": "application/json", "User-Agent": _USER_AGENT}
        if config.api_key:
            key = config.api_key.get_secret_value().strip()
            self._headers["Authorization"] = f"Bearer {key}"

    def __repr__(self) -> str:
        return f"OpenAIChat({self.provider}, {self.model})"

    async def complete(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        *,
        deadline: float,
        headers: Headers | None = None,
    ) -> ModelReply:
        """Ask once; see `common.llm.types.ChatModel`."""
        call = Call(sampling.model or self.model, deadline, self._config.rate_limit_budget)
        reply: ModelReply | None = None
        error: ErrorType | None = "cancelled"
        try:
            request = shape(messages, tools, self._config.capabilities_of(call.model))
            body = self._body(call.model, request, sampling)
            async with self._pacer.slot(call):
                answer = await self._ask(
                    call, encode(body), headers if self._trace and headers else {}
                )
            reply = self._read(call, request, body, answer, tools)
            error = None
        except ModelRateLimited:
            error = "rate_limited"
            raise
        except ModelUnavailable:
            error = "unavailable"
            raise
        except ModelRefused:
            error = "refused"
            raise
        except ModelMisconfigured:
            error = "misconfigured"
            raise
        finally:
            self._report(call, reply, error)
        return reply

    async def check(self) -> str:
        """Prove key and model with one small request. Returns a sentence; raises as `complete`."""
        question = [{"role": "user", "content": "Answer with one word: ready?"}]
        reply = await self.complete(question, [], Sampling(max_tokens=16), deadline=_CHECK_DEADLINE)
        return f"{self.provider}: {reply.model} answered in {reply.duration:.1f} s"

    async def close(self) -> None:
        await self._pool.release()

    def _body(self, model: str, request: Request, sampling: Sampling) -> dict[str, Any]:
        known = self._config.capabilities_of(model)
        asked = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            known.max_tokens_field: sampling.max_tokens,
        }
        return {
            **known.extra_body,
            **{name: value for name, value in asked.items() if value is not None},
            **request.body,
            "model": model,
            "messages": request.messages,
        }

    async def _ask(self, call: Call, body: bytes, headers: Headers) -> dict[str, Any]:
        """Send until an answer is whole, at the pace the provider allows."""
        while True:
            await self._pacer.wait_while_paused(call)
            try:
                async with self._pacer.working(call):
                    return await self._send(call.model, body, headers)
            except Transient as fault:
                await self._pacer.after(fault, call)

    async def _send(self, model: str, body: bytes, headers: Headers) -> dict[str, Any]:
        """Send one request and return its body once it is a chat completion."""
        try:
            # The SDK's transport without its client: `chat.completions.create` walks the whole chat
            # on the event loop (11 ms for an agent's turn), even its bare `post` costs 0.4 ms, and
            # it takes a body of any shape for an answer.
            response = await self._pool.http.post(
                self._url, content=body, headers={**self._headers, **headers}
            )
        except (httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            cause = error.__cause__ or error
            reason = scrub(f"{type(cause).__name__} {cause}".strip(), self._config)
            raise Transient("connection", f"lost the connection ({reason})") from None
        if not response.is_success:
            raise of_status(self._config, model, response)
        return read_body(response)

    def _read(
        self,
        call: Call,
        request: Request,
        body: dict[str, Any],
        answer: dict[str, Any],
        tools: list[dict[str, Any]],
    ) -> ModelReply:
        choice, served = answer["choices"][0], answer.get("model")
        # Nulls are the provider's way to say "absent"; some refuse to be told so by us.
        kept = {name: value for name, value in choice["message"].items() if value is not None}
        message = with_ids({"role": "assistant", **kept})
        read = read_answer(message, choice["finish_reason"], request.mode, tools)
        if choice["finish_reason"] == "content_filter" and not read.calls:
            raise ModelRefused(f"{self.provider}: its content filter stopped the answer")
        if answer.get("system_fingerprint") == "standin":
            self.source = "standin"
        return ModelReply(
            message=message,
            text=read.text,
            thought=read.thought,
            calls=read.calls,
            finish_reason=choice["finish_reason"],
            parse=read.parse,
            usage=usage_of(self._config, call.model, body, answer),
            model=served if isinstance(served, str) and served else call.model,
            source=self.source,
            sent=tuple(request.messages) if request.changed else (),
            throttled=call.throttled,
            duration=call.spent,
        )

    def _report(self, call: Call, reply: ModelReply | None, error: ErrorType | None) -> None:
        if self._observe is None:
            return
        gave_up = error in ("unavailable", "rate_limited") and bool(call.faults)
        self._observe(
            CallRecord(
                provider=self.provider,
                model=call.model,
                source=self.source,
                seconds=call.spent,
                throttled=call.throttled,
                error_type=error,
                usage=reply.usage if reply else None,
                retries=len(call.faults) - gave_up,
                faults=tuple(call.faults),
                parse=reply.parse if reply else None,
            )
        )


def is_loopback(url: str) -> bool:
    """Say whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
