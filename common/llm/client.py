"""Asks one model of one OpenAI-compatible provider: shape → send → read → count.

A provider is never changed within a chat: its history (thought signatures, reasoning) is private
to it, and a trajectory has one model.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from common import __version__
from common.failures import ConfigurationError
from common.llm.cost import cost, usage_of
from common.llm.faults import Transient, of_status, read_body, scrub
from common.llm.http import NEVER_CONNECTED, Pool
from common.llm.pacing import Backoff, Call, Pacer
from common.llm.parse import read_answer, with_ids
from common.llm.providers import ProviderConfig, choose
from common.llm.request import Request, encode, shape
from common.llm.toll import Toll
from common.llm.types import (
    CallRecord,
    ChatModel,
    ErrorType,
    Headers,
    ModelFailure,
    ModelMisconfigured,
    ModelRateLimited,
    ModelRefused,
    ModelReply,
    Observe,
    Source,
)
from common.quota.budgets import BudgetWatch
from common.quota.gate import Gate
from common.quota.terms import BudgetExceeded
from common.settings import Settings
from common.task import Sampling
from common.trajectory import Usage

_CHECK_DEADLINE = 30.0  # seconds
_USER_AGENT = f"trajectory-fleet/{__version__}"


def connect(
    settings: Settings,
    *,
    configs: Sequence[ProviderConfig] | None = None,
    observe: Observe | None = None,
    gate: Gate | None = None,
    watch: BudgetWatch | None = None,
) -> list[ChatModel]:
    """Return the models the settings configure, the one to use first; close each in the end.

    They share one pool of connections. ``configs``: others than `choose` returns. ``gate`` and
    ``watch``: the limits and budgets of the fleet (see `OpenAIChat`). Raises `ConfigurationError`
    as `choose` does, and when the embedded model is all there is but none is running.
    """
    configs = choose(settings) if configs is None else configs
    pool = Pool()
    models: list[ChatModel] = [
        OpenAIChat(one, pool=pool, observe=observe, gate=gate, watch=watch) for one in configs
    ]
    for one in configs:
        cost(one, one.model, 0, 0, 0)  # loads the price list now, not in the first call
    return models


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
        gate: Gate | None = None,
        watch: BudgetWatch | None = None,
    ) -> None:
        """Make a client; nothing is sent yet.

        ``gate``: keeps to the limits and budgets that all processes share; without one, this
        process paces itself. ``watch``: lets `objection` know of budgets.

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
        self._pacer = Pacer(
            config.name, config.concurrency, backoff or Backoff(), fleet=gate is not None
        )
        local = is_loopback(config.base_url)
        self._trace = local if trace_headers is None else trace_headers
        self._toll = Toll(config, gate, watch, local=local) if gate is not None else None
        self._pool = (pool or Pool()).share()
        self._url = config.base_url.rstrip("/") + "/chat/completions"
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
        account: str = "",
    ) -> ModelReply:
        """Ask once; see `common.llm.types.ChatModel`."""
        model, budget = sampling.model or self.model, self._config.rate_limit_budget
        call = Call(model, deadline, budget, account)
        reply: ModelReply | None = None
        error: ErrorType | None = "cancelled"
        try:
            request = shape(messages, tools, self._config.capabilities_of(call.model))
            body = self._body(call.model, request, sampling)
            async with self._pacer.slot(call):
                answer, usage = await self._ask(
                    call, body, headers if self._trace and headers else {}
                )
            reply = self._read(call, request, answer, usage, tools)
            error = None
        except (ModelFailure, BudgetExceeded) as failure:
            failure.throttled = call.throttled
            error = _type_of(failure)
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

    def objection(self, account: str, sampling: Sampling) -> BudgetExceeded | None:
        """Return why a call could not be paid for; see `common.llm.types.ChatModel`."""
        model = sampling.model or self.model
        return self._toll.objection(account, model) if self._toll is not None else None

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

    async def _ask(
        self, call: Call, asked: dict[str, Any], headers: Headers
    ) -> tuple[dict[str, Any], Usage]:
        """Send until an answer is whole, at the pace provider and fleet allow."""
        body = encode(asked)
        while True:
            await self._pacer.wait_while_paused(call)
            try:
                if self._toll is None:
                    return await self._once(call, asked, body, headers)
                async with self._toll.passing(call, body, asked) as fare:
                    answer, usage = await self._once(call, asked, body, headers)
                    fare.paid(usage)
                return answer, usage
            except Transient as fault:
                await self._pacer.after(fault, call)

    async def _once(
        self, call: Call, asked: dict[str, Any], body: bytes, headers: Headers
    ) -> tuple[dict[str, Any], Usage]:
        async with self._pacer.working(call):
            answer = await self._send(call.model, body, headers)
        return answer, usage_of(self._config, call.model, asked, answer)

    async def _send(self, model: str, body: bytes, headers: Headers) -> dict[str, Any]:
        """Send one request and return its body once it is a chat completion."""
        try:
            answer = await self._pool.post(self._url, body, {**self._headers, **headers})
        except (aiohttp.ClientError, OSError) as error:
            cause = error.__cause__ or error
            reason = scrub(f"{type(cause).__name__} {cause}".strip(), self._config)
            unsent = isinstance(error, NEVER_CONNECTED)
            raise Transient(
                "connection", f"lost the connection ({reason})", unsent=unsent
            ) from None
        if not 200 <= answer.status < 300:
            raise of_status(self._config, model, answer)
        return read_body(answer)

    def _read(
        self,
        call: Call,
        request: Request,
        answer: dict[str, Any],
        usage: Usage,
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
            usage=usage,
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
                account=call.account,
            )
        )


def _type_of(failure: ModelFailure | BudgetExceeded) -> ErrorType:
    match failure:
        case BudgetExceeded():
            return "budget_exceeded"
        case ModelRateLimited():
            return "rate_limited"
        case ModelRefused():
            return "refused"
        case _:
            return "unavailable"


def is_loopback(url: str) -> bool:
    """Say whether a URL leads to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
