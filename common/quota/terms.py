"""What is said at the gate: who asks, what for, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from common.failures import FailureKind, FleetError

Verdict = Literal["ok", "limited", "failed"]
"""How a request ended, as far as limits go: answered; 429; anything else."""

NANO = 1_000_000_000
"""Budgets count whole nano-USD: a token of the cheapest models costs about a hundred."""
UNPRICED = -1


class BudgetExceeded(FleetError):
    """A budget has nothing left for this call; it was not made. Ends the task, which can be run
    again once the budget is raised (`fleet dead retry`)."""

    kind = FailureKind.BUDGET_EXCEEDED
    throttled: float = 0.0
    """Seconds the call had waited before."""


class Unpriced(Exception):
    """There is a budget in USD, and no price for the model: nobody could say what is left."""

    def __init__(self, scope: str) -> None:
        super().__init__(scope)
        self.scope = scope


class Crowded(TimeoutError):
    """There will be no room in time: the provider has asked to be left alone for longer."""

    def __init__(self, pause: float) -> None:
        super().__init__(f"paused for {pause:.0f} s")
        self.pause = pause
        """Seconds."""


def exceeded(scope: str, unit: str, limit: int, spent: int, need: int) -> BudgetExceeded:
    """Return the error that says which budget is used up, and how to raise it.

    ``unit``: `usd` (amounts in nano-USD) or `tok`. ``need``: of the call; 0: not known yet.
    """
    whose = "of the run" if scope == "run" else f"of scene {scope.removeprefix('scene:')}"
    option = f"{_scene_option(scope)}--{'usd' if unit == 'usd' else 'tokens'} N"
    call = f", and this call may take up to {amount(unit, need)}" if need else ""
    return BudgetExceeded(
        f"the budget {whose} has too little left: {amount(unit, spent)} of {amount(unit, limit)} "
        f"are spent{call}. Raise it with `fleet budget set {option}`, then run what it ended again "
        "with `fleet dead retry`."
    )


def amount(unit: str, number: int) -> str:
    """Return an amount as a person reads it: `1.25 USD`, `12,000 tokens`."""
    if unit == "tok":
        return f"{number:,} tokens"
    dollars = f"{number / NANO:,.6f}".rstrip("0")
    whole, _, cents = dollars.partition(".")
    return f"{whole}.{cents.ljust(2, '0')} USD"


def _scene_option(scope: str) -> str:
    return "" if scope == "run" else f"--scene {scope.removeprefix('scene:')} "


@dataclass(frozen=True)
class Line:
    """One provider key, as this process is configured to use it."""

    id: str
    name: str
    """The provider's, for metrics."""
    start: int
    """Calls in flight to begin with; the fleet finds out how many there may be."""
    rpm: int = 0
    """Requests a minute, of the whole fleet; 0: no limit known."""
    tpm: int = 0


@dataclass(frozen=True)
class Ask:
    """One request to a model, before it is made."""

    line: Line
    account: str
    """The scene it is for; empty: none."""
    tokens: int
    """At most, prompt and answer."""
    nano_usd: int
    """At most; `UNPRICED` where no price is known."""
    ticket: int = 0
    """Its place in the line, where it was let through before and answered with 429."""


@dataclass(frozen=True)
class Permit:
    """One request may be made now. Must be settled, whatever becomes of the request."""

    ask: Ask
    epoch: str
    serial: int
    taken: int
    """Tokens taken from the tokens-per-minute bucket."""
    ticket: int
