"""The `fleet` command."""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.live import Live
from rich.table import Table
from rich.text import Text

from common import __version__
from common.failures import ConfigurationError
from common.store import StoreError
from fleet import status as status_view
from fleet.approvals import approvals_app
from fleet.arguments import scene_name
from fleet.audit import audit_app
from fleet.budget import budget_app
from fleet.checkup import doctor
from fleet.children import python
from fleet.context import Output, clean, err, fail, out, settings_for, with_server
from fleet.control import control_app
from fleet.dead import dead_app
from fleet.drain import drain_app
from fleet.exporting import export
from fleet.files import submit, validate
from fleet.judge import judge_app
from fleet.packages import packages_app
from fleet.rescore import rescore
from fleet.schemas import schema
from fleet.second_look import review_app
from fleet.show import show_command
from workers.scenes import SCENES

app = typer.Typer(
    name="fleet",
    help="Verified AI-agent trajectories from one file of tasks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for commands in (control_app, drain_app, audit_app):
    app.add_typer(commands)  # without a name: `fleet pause`, not `fleet control pause`
for name, commands in (
    ("dead", dead_app), ("budget", budget_app), ("packages", packages_app),
    ("approvals", approvals_app), ("judge", judge_app), ("review", review_app),
):  # fmt: skip
    app.add_typer(commands, name=name)
app.command(epilog="Example: fleet schema task")(schema)
app.command(epilog="Example: fleet doctor")(doctor)
app.command(epilog="Example: fleet submit more.jsonl")(submit)
app.command(epilog="Example: fleet validate tasks.jsonl")(validate)
app.command("show", epilog="Example: fleet show task-7 --full")(show_command)
app.command(epilog="Example: fleet export sft --out output/sft.jsonl")(export)
app.command(epilog="Example: fleet rescore --rubric code.yaml --dry-run")(rescore)
EXIT_NO_MODEL = 69
"""EX_UNAVAILABLE of sysexits.h: no provider configured, and no embedded model to be had."""


@app.command(epilog="Example: fleet up tasks.jsonl --until-done")
def up(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Tasks files to follow. Default: tasks.jsonl")
    ] = None,
    output: Output = None,
    scene: Annotated[
        list[str] | None,
        typer.Option(parser=scene_name, metavar="SCENE", help="Scenes to serve. Default: all."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Episodes at once in each worker (8).")
    ] = None,
    until_done: Annotated[
        bool,
        typer.Option("--until-done", help="End once every task has ended, or waits for people."),
    ] = False,
    agent: Annotated[
        str | None,
        typer.Option(help="Who acts where a line does not say: llm (default), oracle or nop."),
    ] = None,
    budget_usd: Annotated[
        float | None, typer.Option(min=0, help="US dollars models may cost, in all; live: budget.")
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(min=0, help="Tokens models may use, in all.")
    ] = None,
    allow_unsafe: Annotated[
        bool,
        typer.Option(
            "--allow-unsafe",
            help="Work although sandboxes do not hold what they promise; trajectories say so.",
        ),
    ] = False,
) -> None:
    """Bring up everything in this terminal: server, model, dispatcher, workers, reviewer.

    Work is kept in the output folder: started again, it goes on where it was. Ctrl-C drains, and
    so does `fleet drain` in another terminal.
    """
    from fleet.up import Fleet, NoModel, Plan, State

    settings = settings_for(
        output, concurrency=concurrency, agent=agent,
        budget_usd=budget_usd, budget_tokens=budget_tokens, allow_unsafe=allow_unsafe or None,
    )  # fmt: skip
    scenes = scene or list(SCENES)
    for name in scenes:
        if name not in SCENES:
            fail(f"no scene {name!r} in this release; there is: {', '.join(SCENES)}", 2)
    plan = Plan(
        files=files or [Path("tasks.jsonl")],
        scenes=scenes,
        workers=workers,
        concurrency=settings.concurrency,
        until_done=until_done,
        needs_model=settings.agent == "llm",
    )
    if until_done and (absent := [str(f) for f in plan.files if not f.exists()]):
        fail(f"no such file: {', '.join(absent)}", 2)
    told = 0.0

    def lines(state: State, snapshot: status_view.Snapshot | None) -> Table:
        grid = Table.grid()
        seconds = time.monotonic() - state.began
        grid.add_row(Text(f"model: {state.model} · {seconds:.0f} s", style="bold"))
        if snapshot is not None and snapshot.scenes:
            grid.add_row(status_view.table(snapshot))
            for remark in status_view.remarks(snapshot):
                grid.add_row(Text(remark, style="yellow"))
        for child in state.children:
            if child.restarts:
                grid.add_row(Text(f"{child.name} restarted {child.restarts} times: see {child.log}",
                                  style="red"))  # fmt: skip
        if state.note:
            grid.add_row(Text(state.note, style="dim"))
        return grid

    with Live(console=out, refresh_per_second=4, auto_refresh=False) as live:

        def draw(state: State, snapshot: status_view.Snapshot | None) -> None:
            nonlocal told
            if out.is_terminal:
                live.update(lines(state, snapshot), refresh=True)
            elif time.monotonic() - told > 5:
                told = time.monotonic()
                err.print(_brief(state.model, snapshot, plan.scenes), highlight=False, markup=False)

        try:
            outcome = asyncio.run(Fleet(plan, settings, draw).run())
        except* ConfigurationError as group:
            live.stop()
            error = _first(group)
            fail(str(error), EXIT_NO_MODEL if isinstance(error, NoModel) else 78)
        except* StoreError as group:
            live.stop()
            fail(str(_first(group)), 78)
    for line in outcome.broken:
        err.print(clean(line, style="red"))
    snapshot = outcome.last
    if not out.is_terminal:
        out.print(status_view.table(snapshot))
        for remark in status_view.remarks(snapshot):
            out.print(Text(remark))
    undone = any(status_view.goes_on(c) or c["dead"] for c in snapshot.scenes.values())
    if until_done and (undone or not outcome.finished):
        raise typer.Exit(1)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _brief(model: str, snapshot: status_view.Snapshot | None, scenes: list[str]) -> str:
    if snapshot is None:
        return f"model: {model}"
    parts = [
        f"{name}: {c['tasks'] - c.open_tasks}/{c['tasks']} tasks ended, {c.running} running, "
        f"{c['accepted']} accepted"
        for name, c in snapshot.scenes.items()
        if c["tasks"]
    ]
    parts += snapshot.held_up(scenes)
    return "; ".join(parts) or "starting"


@app.command(epilog="Example: fleet status --json")
def status(
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what waits, runs and came of it, per scene."""
    snapshot = with_server(settings_for(output), status_view.look)
    if as_json:
        data = status_view.as_dict(snapshot)
        print(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode())  # noqa: T201
        return
    if any(counts["tasks"] for counts in snapshot.scenes.values()):
        out.print(status_view.table(snapshot))
    else:
        out.print("no task has been dispatched yet")
    for remark in status_view.remarks(snapshot):
        out.print(Text(remark, style="yellow"))


@app.command(epilog="Example: fleet model")
def model() -> None:
    """Say which model acts; fetch the embedded one's weights if it is the one (once, 0.5 GB)."""
    from common.llm.providers import choose

    settings = settings_for(None)
    try:
        chosen = choose(settings)
    except ConfigurationError as error:
        fail(str(error), 78)
    for place, provider in enumerate(chosen):
        out.print(f"{'then' if place else 'first'} {provider.model} ({provider.name})")
    if chosen[0].name == "embedded" and chosen[0].base_url is None:
        fetched = subprocess.run(python("common.llm.embedded", "--fetch-only"), check=False)
        raise typer.Exit(1 if fetched.returncode else 0)


@app.command(epilog="Example: fleet version")
def version() -> None:
    """Print the version."""
    out.print(__version__)


def main() -> None:
    app()
