"""`fleet budget`: what the models may cost, for the run and for each scene; live, and audited."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.table import Table

from common.queue.connection import Server
from common.quota.budgets import Amounts, Budget, clear_budget, read_budgets, set_budget
from common.quota.keys import scope_of
from common.quota.terms import amount
from fleet.arguments import Why, scene_name
from fleet.context import Output, fail, out, settings_for, who, with_server

budget_app = typer.Typer(
    help="What the models may cost: hard limits in tokens and US dollars, changed live.",
    no_args_is_help=True,
)

Scene = Annotated[
    str | None,
    typer.Option(
        "--scene", "-s", parser=scene_name, metavar="SCENE",
        help="Of this scene only; else of the whole run.",
    ),
]  # fmt: skip


@budget_app.command("set", epilog="Example: fleet budget set --scene code --usd 5")
def budget_set(
    scene: Scene = None,
    usd: Annotated[float | None, typer.Option(min=0, max=1e9, help="US dollars, in all.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=0, max=10**15, help="Prompt and answer, in all.")
    ] = None,
    why: Why = "",
    output: Output = None,
) -> None:
    """Set a limit. It counts everything spent so far, and holds from the next model call on."""
    if usd is None and tokens is None:
        fail("say how much: --usd X, --tokens N, or both", 2)
    if usd is not None and (not math.isfinite(usd) or 0 < usd < 1e-9):
        fail("--usd must be an amount, and at least 1e-9 or 0", 2)

    async def change(server: Server) -> Budget:
        await set_budget(server, who(why), scene=scene, usd=usd, tokens=tokens)
        return (await read_budgets(server))[scope_of(scene)]

    _say(with_server(settings_for(output), change))


@budget_app.command("show", epilog="Example: fleet budget show --json")
def budget_show(
    as_json: Annotated[bool, typer.Option("--json", help="For programs; USD as nano-USD.")] = False,
    output: Output = None,
) -> None:
    """Show what is allowed, spent, and reserved by calls in flight."""
    found = with_server(settings_for(output), read_budgets)
    if as_json:
        out.print_json(orjson.dumps({name: asdict(one) for name, one in found.items()}).decode())
        return
    shown = Table("scope", "spent", "reserved", "limit", "left", "calls")
    for budget in found.values():
        for unit, one in (("usd", budget.usd), ("tok", budget.tokens)):
            calls = str(budget.calls) if unit == "usd" else ""
            shown.add_row(budget.scope if unit == "usd" else "", *_row(unit, one), calls)
    out.print(shown if found else "nothing spent yet, and no limit set")


@budget_app.command("clear", epilog="Example: fleet budget clear --scene code")
def budget_clear(
    scene: Scene = None,
    spent: Annotated[bool, typer.Option(help="Also count from nothing again.")] = False,
    why: Why = "",
    output: Output = None,
) -> None:
    """Take the limits of the run, or of a scene, away."""

    async def change(server: Server) -> None:
        await clear_budget(server, who(why), scene=scene, spent=spent)

    with_server(settings_for(output), change)
    out.print(f"no limit any more: {scope_of(scene)}")


def _say(budget: Budget) -> None:
    for unit, one in (("usd", budget.usd), ("tok", budget.tokens)):
        if one.limit is not None:
            spent = f"{amount(unit, one.spent)} of it spent"
            out.print(f"{budget.scope}: at most {amount(unit, one.limit)}, {spent}")


def _row(unit: str, one: Amounts) -> tuple[str, str, str, str]:
    left = "" if one.limit is None else amount(unit, max(0, one.limit - one.spent - one.held))
    limit = "none" if one.limit is None else amount(unit, one.limit)
    return amount(unit, one.spent), amount(unit, one.held), limit, left
