"""Hard budgets in tokens and US dollars: how people and `fleet up` set them, and what is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from common.logs import logger
from common.metrics import Metrics
from common.process import ended
from common.queue.connection import Server
from common.queue.control import Who, record
from common.quota import library
from common.quota.keys import PREFIX, RUN, scope_of
from common.quota.terms import NANO, BudgetExceeded, exceeded

log = logger("quota")

_LOOK = 1.0  # seconds
_STALE = 5.0
"""Seconds after which what was seen is no reason to refuse anything any more."""
_UNITS = ("usd", "tok")


@dataclass(frozen=True)
class Amounts:
    """One unit of a budget: nano-USD, or tokens."""

    limit: int | None
    spent: int
    held: int
    """Reserved by calls in flight."""
    least: int
    """The smallest reservation a scene ever asked for; 0: none yet."""

    @property
    def exhausted(self) -> bool:
        """Is too little left for any call such as were made before?"""
        return self.limit is not None and self.limit - self.spent < max(1, self.least)


@dataclass(frozen=True)
class Budget:
    """What one scope may spend, and has spent."""

    scope: str
    """`run`, or `scene:<scene>`."""
    usd: Amounts
    tokens: Amounts
    calls: int
    """Answered: none that met a 429, failed, or was never made."""


async def read_budgets(server: Server) -> dict[str, Budget]:
    """Return every budget and everything spent, by scope, the run first."""
    return (await _read(server))[1]


async def _read(server: Server) -> tuple[str, dict[str, Budget]]:
    """Return when the server's memory of budgets began ("": not yet), and as `read_budgets` does.

    Plain reads: a server whose memory is full takes no library, and must still say what is spent.
    """

    async def ask() -> tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]:
        scopes: list[Any] = list(await server.client.smembers(f"{PREFIX}scopes"))
        async with server.client.pipeline(transaction=True) as pipe:
            pipe.get(f"{PREFIX}born")
            for scope in scopes:
                pipe.hgetall(f"{PREFIX}b:{scope.decode()}")
            born, *rows = await pipe.execute()
        return born or b"", list(zip(scopes, rows, strict=True))

    born, rows = await server.persist(ask)
    found = {}
    for scope, row in rows:
        fields = {name.decode(): int(float(value)) for name, value in row.items()}
        usd, tokens = (
            Amounts(
                fields.get(f"{unit}_limit"),
                fields.get(f"{unit}_spent", 0),
                fields.get(f"{unit}_held", 0),
                fields.get(f"{unit}_least", 0),
            )
            for unit in _UNITS
        )
        name = scope.decode()
        found[name] = Budget(name, usd, tokens, fields.get("calls", 0))
    return born.decode(), dict(sorted(found.items()))


async def set_budget(
    server: Server,
    who: Who,
    *,
    scene: str | None = None,
    usd: float | None = None,
    tokens: int | None = None,
) -> None:
    """Set the limits that are given, of a scene or of the run; what is spent stays spent."""
    fields: list[object] = []
    if usd is not None:
        fields += ["usd_limit", round(usd * NANO)]
    if tokens is not None:
        fields += ["tok_limit", tokens]
    said = {"usd": usd, "tokens": tokens}
    detail = {name: value for name, value in said.items() if value is not None}
    await _change(server, who, "budget.set", scene, fields, detail)


async def clear_budget(
    server: Server, who: Who, *, scene: str | None = None, spent: bool = False
) -> None:
    """Take both limits away; with ``spent`` also count from nothing again."""
    fields: list[object] = ["usd_limit", "", "tok_limit", ""]
    if spent:
        fields += ["spent", 0]
    await _change(server, who, "budget.clear", scene, fields, {"spent": spent})


async def apply_budgets(server: Server, who: Who, *, usd: float | None, tokens: int | None) -> None:
    """Make the run's limits those of the settings, where these say any and they differ.

    For `fleet up`, with FLEET_BUDGET_USD and FLEET_BUDGET_TOKENS.
    """
    run = (await read_budgets(server)).get(RUN)
    if run is not None and usd is not None and run.usd.limit == round(usd * NANO):
        usd = None
    if run is not None and tokens is not None and run.tokens.limit == tokens:
        tokens = None
    if usd is not None or tokens is not None:
        await set_budget(server, who, usd=usd, tokens=tokens)


async def _change(
    server: Server,
    who: Who,
    action: str,
    scene: str | None,
    fields: list[object],
    detail: Mapping[str, object],
) -> None:
    scope = scope_of(scene)
    why = {"why": who.why} if who.why else {}
    # Two slots, so two calls; written first: a change without a row would be worse than the other.
    await record(server, who.by, action, scope, orjson.dumps({**detail, **why}))
    await library.call(server, "budget", (scope, *fields))


class BudgetWatch:
    """Knows from memory, about a second old, whether anything is left; shows it as metrics."""

    def __init__(self, server: Server, *, metrics: Metrics | None = None) -> None:
        self._server = server
        self._metrics = metrics
        self._seen: dict[str, Budget] = {}
        self._born = ""
        """When the memory began in which they were seen."""
        self._looking = asyncio.Lock()
        self._seen_at = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Look once, and then every second until `close`."""
        await self.look()
        self._task = asyncio.create_task(self._keep_looking(), name="budgets")

    async def close(self) -> None:
        self._closed = True  # it may miss being cancelled
        if self._task is not None:
            await ended(self._task)

    async def look(self) -> None:
        """Read the budgets; put back first what the server has forgotten since the last look."""
        async with self._looking:
            await self._look()

    async def _look(self) -> None:
        born, found = await _read(self._server)
        while lost := self._lost(born, found):
            for budget in lost:
                await self._restore(budget)
            # Read again: if that was forgotten as well meanwhile, `born` is another one.
            self._born = born
            born, found = await _read(self._server)
        self._born, self._seen = born, found
        self._seen_at = time.monotonic()
        if self._metrics is not None:
            for scope, budget in self._seen.items():
                self._show(self._metrics, scope, budget)

    def _lost(self, born: str, found: Mapping[str, Budget]) -> list[Budget]:
        """Return what was seen in a memory that is gone: an exchange may have begun it anew."""
        if self._born not in ("", born):
            return list(self._seen.values())
        # A budget that is taken away keeps its scope: one without was set after an old snapshot.
        return [budget for scope, budget in self._seen.items() if scope not in found]

    def objection(self, scene: str, *, free: bool) -> BudgetExceeded | None:
        """Return why no call for ``scene`` can be paid for; None if one can, or nobody knows.

        ``free``: the model costs no dollars.
        """
        for budget in self._budgets_of(scene):
            for unit, amounts in (("usd", budget.usd), ("tok", budget.tokens)):
                if amounts.exhausted and not (free and unit == "usd"):
                    assert amounts.limit is not None
                    return exceeded(budget.scope, unit, amounts.limit, amounts.spent, amounts.least)
        return None

    def in_dollars(self, scene: str) -> str | None:
        """Return the scope whose limit in dollars holds for ``scene``; None: none that is known."""
        for budget in self._budgets_of(scene):
            if budget.usd.limit is not None:
                return budget.scope
        return None

    def _budgets_of(self, scene: str) -> list[Budget]:
        """Return what was seen of the run and the scene; nothing if too long ago."""
        if time.monotonic() - self._seen_at > _STALE:
            return []  # the call itself will ask
        scopes = dict.fromkeys((RUN, scope_of(scene)))
        return [self._seen[scope] for scope in scopes if scope in self._seen]

    async def _restore(self, budget: Budget) -> None:
        """Put back what the server has forgotten: a limit that vanishes is no permission."""
        fields: list[object] = ["calls", budget.calls]
        for unit, amounts in (("usd", budget.usd), ("tok", budget.tokens)):
            # What was held may have been paid, and nobody will settle it any more.
            fields += [f"{unit}_spent", amounts.spent + amounts.held]
            if amounts.limit is not None:
                fields += [f"{unit}_limit", amounts.limit]
        if await library.call(self._server, "restore", (budget.scope, *fields)):
            log.error("budget.restored", scope=budget.scope, hint="the server had forgotten it")

    async def _keep_looking(self) -> None:
        blind = False
        while not self._closed:
            await asyncio.sleep(_LOOK)
            try:
                await self.look()
            except Exception as error:  # the next look may succeed; calls ask for themselves
                if not blind:
                    hint = "calls still ask; tasks that cannot be paid for start a sandbox first"
                    log.warning("budget.unseen", error=str(error)[:200], hint=hint)
                blind = True
            else:
                if blind:
                    log.info("budget.seen_again")
                blind = False

    @staticmethod
    def _show(metrics: Metrics, scope: str, budget: Budget) -> None:
        metrics.budget_spent_usd.labels(scope).set(budget.usd.spent / NANO)
        metrics.budget_spent_tokens.labels(scope).set(budget.tokens.spent)
        limit = budget.usd.limit
        metrics.budget_limit_usd.labels(scope).set(float("inf") if limit is None else limit / NANO)
