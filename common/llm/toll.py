"""One provider key's way through the gate of the fleet: reserve, wait for room, send, settle."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from common.llm.cost import cost, estimate, is_free, nano
from common.llm.faults import Limited, Transient
from common.llm.pacing import Call
from common.llm.providers import ProviderConfig
from common.llm.types import ModelMisconfigured, ModelRateLimited, ModelRefused
from common.quota.budgets import BudgetWatch
from common.quota.gate import Gate
from common.quota.keys import RUN, provider_id
from common.quota.terms import Ask, BudgetExceeded, Crowded, Line, Permit, Unpriced, Verdict
from common.trajectory import Usage

_START = 16
"""Calls in flight to begin with at a provider nobody has asked yet; doubles with each answer."""
_AT_LEAST = 1.0
"""Seconds for asking the queue server, however little a call may wait for rate limits."""


_UNPAID = {409, 425, 429, 500, 503}
"""HTTP errors of a server that has not answered. Not 408, 502, 504 and 524: there a proxy, or a
clock, gave up on an answer that may have been written and will be on the bill."""


class Fare:
    """What one request has cost; the whole estimate until somebody knows better."""

    def __init__(self, ask: Ask) -> None:
        self.tokens = ask.tokens
        self.nano_usd = max(0, ask.nano_usd)

    def paid(self, usage: Usage) -> None:
        self.tokens = usage.prompt_tokens + usage.completion_tokens
        self.nano_usd = nano(usage.cost_usd)

    def free(self) -> None:
        self.tokens = self.nano_usd = 0


class Toll:
    """What the fleet allows one provider key. ``local``: it serves on this machine."""

    def __init__(
        self, config: ProviderConfig, gate: Gate, watch: BudgetWatch | None, *, local: bool
    ) -> None:
        self._config = config
        self._gate = gate
        self._watch = watch
        if watch is not None:
            gate.before_new_memory(watch.look)
        key = config.api_key.get_secret_value().strip() if config.api_key else ""
        self._line = Line(
            id=provider_id(config.name, config.base_url or "", key),
            name=config.name,
            start=config.concurrency if local else min(_START, config.concurrency),
            rpm=config.rpm,
            tpm=config.tpm,
        )

    def objection(self, account: str, model: str) -> BudgetExceeded | None:
        """Return why a call could not be paid for, from memory."""
        if self._watch is None:
            return None
        scope = self._watch.in_dollars(account)
        if scope is not None and cost(self._config, model, 0, 0, 0) is None:
            return self._unpriced(model, scope)
        return self._watch.objection(account, free=is_free(self._config, model))

    @asynccontextmanager
    async def passing(self, call: Call, body: bytes, asked: dict[str, Any]) -> AsyncIterator[Fare]:
        """Let one request be made in the block, and settle it afterwards.

        Raises `BudgetExceeded`, `ModelRateLimited`, `ModelMisconfigured`.
        """
        tokens, dollars = estimate(self._config, call.model, body, asked)
        ask = Ask(self._line, call.account, tokens, dollars, call.ticket)
        permit = await self._admit(ask, call)
        call.ticket = permit.ticket
        fare = Fare(ask)
        try:
            yield fare
        except Limited as fault:
            self._gate.settle(
                permit, "limited", tokens=0, nano_usd=0, retry_after=fault.retry_after
            )
            raise
        except BaseException as error:
            if _is_unpaid(error):
                fare.free()
            self._settle(permit, fare, answered=False)
            raise
        self._settle(permit, fare, answered=True)

    def _settle(self, permit: Permit, fare: Fare, *, answered: bool) -> None:
        verdict: Verdict = "ok" if answered else "failed"
        self._gate.settle(permit, verdict, tokens=fare.tokens, nano_usd=fare.nano_usd)

    async def _admit(self, ask: Ask, call: Call) -> Permit:
        name, started = self._config.name, time.monotonic()
        try:
            return await self._gate.admit(ask, within=max(_AT_LEAST, call.budget - call.throttled))
        except TimeoutError as error:
            pause = error.pause if isinstance(error, Crowded) else None
            why = "asked to slow down (429)" if pause else "no room among the fleet's calls to it"
            raise ModelRateLimited(
                f"{name}: {why}; waited {call.throttled + time.monotonic() - started:.0f} s of "
                f"{call.budget:.0f} s (FLEET_LLM_RATE_LIMIT_BUDGET)"
                + (f", {pause:.0f} s more are needed" if pause else ""),
                retry_after=pause,
            ) from None
        except Unpriced as error:
            raise self._unpriced(call.model, error.scope) from None
        finally:
            call.throttled += time.monotonic() - started

    def _unpriced(self, model: str, scope: str) -> BudgetExceeded:
        """Ends the task and not the worker: a person sets a price, and runs it again."""
        option = "" if scope == RUN else f" --scene {scope.removeprefix('scene:')}"
        return BudgetExceeded(
            f"{self._config.name}: there is a budget in USD ({scope}), but no price is known for "
            f"{model}: set FLEET_LLM_PRICE (of a custom provider) or write its `price` "
            f"into providers.yaml, or take the budget away (`fleet budget clear{option}`), "
            "and run what it ended again with `fleet dead retry`."
        )


def _is_unpaid(error: BaseException) -> bool:
    """Did the provider surely not work for it? Whatever else is in doubt is taken as paid."""
    if isinstance(error, (ModelRefused, ModelMisconfigured)):
        return True
    return isinstance(error, Transient) and (error.unsent or error.status in _UNPAID)
