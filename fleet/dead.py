"""`fleet dead`: work that ended without a result, found and run again."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from common.queue.connection import Server
from common.queue.scene_queue import SceneQueue
from common.task import SceneName
from fleet.context import Output, clean, fail, out, settings_for, with_server

dead_app = typer.Typer(
    help="Work that ended without a result: why, and once more.", no_args_is_help=True
)


@dead_app.command("list")
def dead_list(
    output: Output = None,
    scene: Annotated[str | None, typer.Option(help="Only this scene.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only this reason.")] = None,
) -> None:
    """List dead letters, with the reason of each."""
    shown = Table("scene", "entry", "task", "unit", "reason", "error")
    letters = with_server(settings_for(output), lambda server: _letters(server, scene, reason))
    for name, letter in letters:
        row = (name, letter["entry"], letter["id"], letter["u"], letter["reason"], letter["error"])
        shown.add_row(*(clean(cell[:300]) for cell in row))
    out.print(shown if letters else "no dead letters")


@dead_app.command("retry")
def dead_retry(
    entries: Annotated[list[str] | None, typer.Argument(help="Entries or task ids.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that match the filters.")] = False,
    output: Output = None,
    scene: Annotated[str | None, typer.Option(help="Only this scene.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only this reason.")] = None,
) -> None:
    """Run dead letters again, with fresh retry budgets."""
    wanted = set(entries or [])
    if not wanted and not every:
        fail("name entries or tasks from `fleet dead list`, or use --all", 2)

    async def revive(server: Server) -> int:
        found: dict[str, list[str]] = {}
        for name, letter in await _letters(server, scene, reason):
            if every or {letter["entry"], letter["id"]} & wanted:
                found.setdefault(name, []).append(letter["entry"])
        return sum([await SceneQueue(server, n).revive(ids) for n, ids in found.items()])

    revived = with_server(settings_for(output), revive)
    out.print(f"{revived} queued again")
    if not revived:
        raise typer.Exit(1)


async def _letters(
    server: Server, scene: str | None, reason: str | None
) -> list[tuple[str, dict[str, str]]]:
    names = [scene] if scene else [s.value for s in SceneName]
    return [
        (name, letter)
        for name in names
        for letter in await SceneQueue(server, name).dead_letters(limit=100_000)
        if reason in (None, letter["reason"])
    ]
