"""What a process asks before each model call, and tells after it: one exchange under way, many
calls in it.

While an exchange with the server is under way the next asks and settlements gather and go together.
Calls that must wait stand in one line per provider key, in Redis, first come first served across
all processes; whoever frees a slot lets the next one through and leaves word in the inbox of its
process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import orjson
import redis

from common.failures import ConfigurationError
from common.logs import logger
from common.metrics import Metrics
from common.process import ended
from common.queue.connection import Server, ServerGone
from common.quota import library
from common.quota.keys import inbox
from common.quota.terms import Ask, Crowded, Line, Permit, Unpriced, Verdict, exceeded

log = logger("quota")

TTL = 15.0
"""Seconds after which the slots of a silent process are free and its reservations are spent."""
_LISTEN = 1  # second of one blocking read
_LEAST_REST = 0.005
_BATCH = 256
_FLUSH_DEADLINE = 5.0
_RETRY_REST = 0.05
_LONGEST_WAIT = 86_400.0
"""Seconds; more than anybody waits after a 429, and small enough for every counter."""
_MOST = (1 << 53) - 1
"""Of tokens or nano-USD of one call: Lua counts no further to the unit."""


@dataclass(frozen=True)
class _Waiting:
    ask: Ask
    until: float
    ruling: asyncio.Future[Permit]


@dataclass(frozen=True)
class _Batch:
    """One exchange: kept until it is answered, as it may have to be repeated."""

    number: int
    asked: frozenset[int]
    freed: tuple[list[Any], ...]
    dropped: tuple[int, ...]
    text: bytes


class Gate:
    """The limits and budgets of the fleet, seen by one process. Close it in the end."""

    def __init__(
        self, server: Server, process: str, *, metrics: Metrics | None = None, ttl: float = TTL
    ) -> None:
        self._server = server
        # A process may have had a gate before: its exchanges must not be taken for repeats of ours.
        self._process = f"{process}.{secrets.token_hex(3)}"
        self._metrics = metrics
        self._ttl = ttl
        self._calls = itertools.count(1)
        self._exchanges = itertools.count(1)
        self._lines: dict[str, Line] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._asking: list[int] = []
        self._dropping: list[int] = []
        self._leaving: dict[int, Ask] = {}
        """Calls that gave up, until the server knows: they may have been let through before."""
        self._freeing: list[list[Any]] = []
        self._unanswered: _Batch | None = None
        self._held = 0
        self._epoch = ""
        self._born = ""
        """When the server's memory of limits and budgets began, as far as we know."""
        self._remind: dict[object, Callable[[], Awaitable[None]]] = {}
        self._next_room: float | None = None
        self._wake, self._collected, self._quiet = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._closed = False
        self._pump: asyncio.Task[None] | None = None
        self._ear: asyncio.Task[None] | None = None

    async def admit(self, ask: Ask, *, within: float) -> Permit:
        """Return once the request may be made. Settle the permit, whatever happens then.

        ``within``: seconds it may wait for room. Raises `TimeoutError` after them (`Crowded` as
        soon as it is known that they are too few), `BudgetExceeded`, `Unpriced`, and what
        `Server.persist` raises.
        """
        loop, call = asyncio.get_running_loop(), next(self._calls)
        waiting = _Waiting(ask, loop.time() + within, loop.create_future())
        self._lines[ask.line.id] = ask.line
        self._waiting[call] = waiting
        self._asking.append(call)
        self._stir()
        try:
            async with asyncio.timeout_at(waiting.until):
                return await waiting.ruling
        except BaseException:
            self._give_up(call, waiting)
            raise

    def before_new_memory(self, remind: Callable[[], Awaitable[None]]) -> None:
        """Have ``remind`` awaited before anything is let through by a server that forgot all.

        For `BudgetWatch.look`, which puts the budgets back; naming the same one again is nothing.
        """
        self._remind[remind] = remind

    def settle(
        self,
        permit: Permit,
        verdict: Verdict,
        *,
        tokens: int,
        nano_usd: int,
        retry_after: float | None = None,
    ) -> None:
        """Tell what became of a request; goes out with the next exchange.

        ``tokens`` and ``nano_usd``: what it really used. ``retry_after``: seconds, with a 429.
        """
        ask = permit.ask
        asked = 0 if retry_after is None else round(min(max(0, retry_after), _LONGEST_WAIT) * 1000)
        self._freeing.append(
            [ask.line.id, ask.account, permit.epoch, permit.serial, verdict, ask.tokens,
             ask.nano_usd, _counted(tokens), _counted(nano_usd), permit.taken, asked]
        )  # fmt: skip
        self._held -= 1
        self._stir()

    async def flush(self) -> None:
        """Return once all that was said so far has reached the server."""
        while self._pending:
            self._stir()
            await self._quiet.wait()
            if self._pending:  # that exchange failed
                await asyncio.sleep(_RETRY_REST)

    async def close(self) -> None:
        """Send what is left, within seconds; what cannot be sent lapses by itself."""
        self._closed = True  # on Python 3.11, redis-py may swallow a cancellation
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_DEADLINE):
                await self.flush()
        await ended(*(task for task in (self._pump, self._ear) if task is not None))

    # -- what is on its way ------------------------------------------------------------------

    @property
    def _pending(self) -> bool:
        said = self._asking or self._dropping or self._freeing
        return bool(said) or self._unanswered is not None

    def _stir(self) -> None:
        self._quiet.clear()
        self._wake.set()
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run(), name="quota")

    def _give_up(self, call: int, waiting: _Waiting, *, stir: bool = True) -> None:
        """A call waits no longer: it was cancelled, refused, or its time is over."""
        if self._waiting.pop(call, None) is None:
            ruling = waiting.ruling
            if not ruling.cancelled() and ruling.exception() is None:
                self._unused(ruling.result())
        elif call in self._asking:
            self._asking.remove(call)
        else:
            self._leaving[call] = waiting.ask
            self._dropping.append(call)
            if stir:
                self._stir()

    def _unused(self, permit: Permit) -> None:
        self.settle(permit, "failed", tokens=0, nano_usd=0)

    # -- the exchange ------------------------------------------------------------------------

    async def _run(self) -> None:
        """Exchange as long as there is something to say, to wait for, or to hold on to."""
        try:
            while True:
                self._wake.clear()
                if not self._pending:
                    self._quiet.set()
                    if not self._held and not self._waiting:
                        return
                    await self._rest()
                await self._exchange()
        except Exception as error:
            # The server is gone for good, or refuses us: whoever waits decides what that means.
            for call, waiting in list(self._waiting.items()):
                self._give_up(call, waiting, stir=False)
                if not waiting.ruling.done():
                    waiting.ruling.set_exception(error)
            expected = isinstance(error, (ServerGone, ConfigurationError))
            if not expected:
                self._take_back()
            self._quiet.set()
            if not expected:
                log.exception("quota.exchange_failed")

    async def _rest(self) -> None:
        """Wait until there is something to say, there may be room, or it is time to show life."""
        seconds = self._ttl / 4
        if self._waiting and self._next_room is not None:
            seconds = min(seconds, max(_LEAST_REST, self._next_room))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _exchange(self) -> None:
        if self._unanswered is None:
            self._unanswered = self._gather()
        batch = self._unanswered
        while True:
            argv = (self._process, batch.number, int(self._ttl * 1000), batch.text, self._born)
            reply = orjson.loads(await library.call(self._server, "exchange", argv))
            if "epoch" in reply:
                break
            # A new memory without budgets: nothing was done yet.
            for remind in list(self._remind.values()):
                await remind()
            self._born = reply["born"]
        self._unanswered, self._born = None, reply["born"]
        self._heed(reply, batch.asked)
        for call in batch.dropped:
            self._leaving.pop(call, None)
        self._collected.set()
        if self._waiting and (self._ear is None or self._ear.done()):
            self._ear = asyncio.create_task(self._listen(), name="quota-inbox")

    def _gather(self) -> _Batch:
        calls, freed, dropped = self._asking[:_BATCH], self._freeing[:_BATCH], self._dropping
        asks = [(call, self._waiting[call].ask) for call in calls]
        left = [(call, self._leaving[call]) for call in dropped]
        said = {
            "providers": {one.id: [one.rpm, one.tpm, one.start] for one in self._lines.values()},
            "free": freed,
            "drop": [[ask.line.id, ask.account, call] for call, ask in left],
            "ask": [
                [ask.line.id, ask.account, call, ask.tokens, ask.nano_usd, ask.ticket]
                for call, ask in asks
            ],
        }
        text = orjson.dumps(said)  # before anything is taken out: it may not be possible
        self._asking, self._freeing = self._asking[_BATCH:], self._freeing[_BATCH:]
        self._dropping = []
        number = next(self._exchanges)
        return _Batch(number, frozenset(calls), tuple(freed), tuple(dropped), text)

    def _take_back(self) -> None:
        """Say what became of calls once more, in another exchange: this one cannot be made."""
        batch, self._unanswered = self._unanswered, None
        if batch is not None:
            self._freeing[:0] = batch.freed
            self._dropping[:0] = [call for call in batch.dropped if call in self._leaving]

    def _heed(self, reply: dict[str, Any], asked: frozenset[int]) -> None:
        """Pass the rulings on to the calls they are about."""
        for ruling in reply["rulings"] or ():
            self._rule(reply["epoch"], *ruling)
        if reply["epoch"] != self._epoch:
            # We were silent for too long, or the server forgot everything: ask again.
            known = asked | set(self._asking)
            self._asking += [call for call in self._waiting if self._epoch and call not in known]
            self._epoch = reply["epoch"]
        self._next_room = reply["wait"] / 1000 if reply["wait"] >= 0 else None
        limits = reply["providers"] or {}
        for id, (limit, in_flight, paused) in limits.items():
            self._show(self._lines[id], int(limit), in_flight)
            if paused:
                self._refuse_those_without_time(id, paused / 1000)

    def _rule(self, epoch: str, call: int, word: str, *more: Any) -> None:
        waiting = self._waiting.pop(call, None)
        ask = waiting.ask if waiting is not None else self._leaving.get(call)
        wanted = waiting is not None and not waiting.ruling.done()
        if word == "go":
            serial, taken, ticket = more
            self._held += 1
            if ask is None:
                return  # never so: a call is known until its last ruling
            permit = Permit(ask, epoch, serial, taken, ticket)
            if waiting is not None and wanted:
                waiting.ruling.set_result(permit)
            else:
                self._unused(permit)
        elif waiting is not None and wanted:
            if word == "over":
                scope, unit, limit, spent, need = more
                error: Exception = exceeded(scope, unit, int(limit), int(spent), int(need))
            else:
                error = Unpriced(more[0])
            waiting.ruling.set_exception(error)

    def _refuse_those_without_time(self, line: str, pause: float) -> None:
        """A call that cannot be let through in time need not wait to learn it."""
        back = asyncio.get_running_loop().time() + pause
        for waiting in self._waiting.values():
            if waiting.ask.line.id == line and waiting.until < back and not waiting.ruling.done():
                waiting.ruling.set_exception(Crowded(pause))

    def _show(self, line: Line, limit: int, in_flight: int) -> None:
        if self._metrics is not None:
            self._metrics.llm_limit.labels(line.name).set(limit)
            self._metrics.llm_in_flight.labels(line.name).set(in_flight)

    async def _listen(self) -> None:
        """Wait for word in the inbox while calls wait; others put it there."""
        box = inbox(self._process)
        while self._waiting and not self._closed:
            self._collected.clear()
            try:
                # It stays in the list: the exchange takes it out, and can be repeated.
                word = await self._server.client.blmove(box, box, _LISTEN, "LEFT", "RIGHT")
            except (redis.exceptions.RedisError, OSError):
                await asyncio.sleep(_LISTEN)  # the exchange waits the outage out, and says so
                continue
            if word is not None:
                self._wake.set()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LISTEN):
                        await self._collected.wait()


def _counted(number: int) -> int:
    """Return what is possible of a number a provider told us: it must fit into every counter."""
    return min(max(0, number), _MOST)
