"""`fleet dead`: work that ended without a result, found, explained, run again or thrown away."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any

import orjson
import typer
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from common.queue.connection import Server
from common.queue.control import Control, Who
from fleet.arguments import ALL_SCENES, SceneOption, Why, local_time, span
from fleet.context import Output, clean, err, fail, out, settings_for, who, with_server
from fleet.letters import Filter, Letter, find, total

dead_app = typer.Typer(
    help="Work that ended without a result: why, and once more.", no_args_is_help=True
)

_LISTED = 100
_CHUNK = 100
"""Letters in one call: the server is held up for about a millisecond."""
_SHOWN = 20
"""Letters that a dry run names."""


class Stage(StrEnum):
    WORK = "work"
    REVIEW = "review"


Reason = Annotated[
    str | None,
    typer.Option(help="Only this reason, or kind of failure behind it: poison, sandbox_lost …"),
]
Task = Annotated[
    str | None, typer.Option(metavar="GLOB", help="Only tasks whose id matches, such as 'web-*'.")
]
Since = Annotated[
    float | None,
    typer.Option(parser=span, metavar="SPAN", help="Only of the last 30m, 2h, 7d …"),
]
OlderThan = Annotated[
    float | None, typer.Option(parser=span, metavar="SPAN", help="Only older than 30m, 2h, 7d …")
]
OnlyStage = Annotated[Stage | None, typer.Option(help="Only what broke at work, or in review.")]
Ids = Annotated[
    list[str] | None, typer.Argument(metavar="[ENTRY|TASK]...", help="Of `fleet dead list`.")
]
Every = Annotated[bool, typer.Option("--all", help="All that match the filters.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def _filter(
    scene: SceneOption = None,
    reason: Reason = None,
    task: Task = None,
    since: Since = None,
    older_than: OlderThan = None,
    stage: OnlyStage = None,
) -> Filter:
    return Filter(
        scenes=(scene,) if scene else ALL_SCENES,
        reason=reason, task=task, since=since, older_than=older_than,
        stage=stage.value if stage else None,
    )  # fmt: skip


def _filtered(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `_filter`, and hand it what they say as ``wanted``."""
    options = signature(_filter, eval_str=True).parameters
    own = signature(command, eval_str=True).parameters

    @wraps(command)
    def filtered(**given: Any) -> None:
        chosen = {name: given.pop(name) for name in options}
        command(wanted=_filter(**chosen), **given)

    shown: list[Parameter] = []
    for name, parameter in own.items():
        shown += options.values() if name == "wanted" else [parameter]
    # What typer reads to make the command line.
    keyword = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in shown]
    filtered.__signature__ = signature(filtered).replace(parameters=keyword)  # type: ignore[attr-defined]
    filtered.__annotations__ = {one.name: one.annotation for one in shown}
    return filtered


@dead_app.command("list", epilog="Example: fleet dead list --reason poison --since 2h")
@_filtered
def dead_list(
    wanted: Filter,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = _LISTED,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    output: Output = None,
) -> None:
    """List dead letters, newest first, with the reason of each."""
    wanted = replace(wanted, limit=limit)

    async def look(server: Server) -> tuple[list[Letter], int]:
        found = await find(server, wanted, payloads=as_json)
        return found, await total(server, wanted.scenes)

    letters, every = with_server(settings_for(output), look)
    if as_json:
        told = [_as_dict(letter) for letter in letters]
        print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())  # noqa: T201
        return
    if not letters:
        out.print(f"no dead letters match, of {every:,} in all" if every else "no dead letters")
        return
    out.print(_table(letters))
    more = "; --limit shows more" if len(letters) == limit < every else ""
    out.print(f"{len(letters):,} of {every:,} dead letters, newest first{more}")


@dead_app.command("show", epilog="Example: fleet dead show task-7")
@_filtered
def dead_show(
    wanted: Filter,
    ids: Annotated[list[str], typer.Argument(metavar="ENTRY|TASK...")],
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = _LISTED,
    output: Output = None,
) -> None:
    """Show all there is about dead letters: reason, error, history, and the task as JSON."""
    wanted = replace(wanted, limit=limit)
    letters = with_server(
        settings_for(output), lambda server: find(server, wanted, ids, payloads=True)
    )
    for letter in letters:
        out.print(_everything(letter))
    if _missing(ids, letters):
        raise typer.Exit(1)


@dead_app.command("retry", epilog="Example: fleet dead retry --all --reason sandbox_lost --dry-run")
@_filtered
def dead_retry(
    wanted: Filter,
    ids: Ids = None,
    every: Every = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The newest so many.")] = None,
    dry_run: DryRun = False,
    why: Why = "",
    output: Output = None,
) -> None:
    """Run dead letters again, with fresh retry budgets, the oldest first."""
    wanted = replace(wanted, limit=limit)
    settings = settings_for(output)
    letters = with_server(settings, lambda server: find(server, wanted, _named(ids, every)))
    missing = _missing(ids or [], letters)
    if dry_run:
        _would("be queued again", letters)
    else:
        by = who(why)
        done = with_server(
            settings, lambda server: _in_chunks(server, letters, _revive, by, "queued again")
        )
        out.print(f"{done:,} queued again")
        if done < len(letters):
            out.print(f"{len(letters) - done:,} passed over: gone meanwhile, or their task was "
                      "queued anew since it died (purge them)")  # fmt: skip
        if not done:
            raise typer.Exit(1)
    if missing:
        raise typer.Exit(1)


@dead_app.command("purge", epilog="Example: fleet dead purge --all --older-than 30d --yes")
@_filtered
def dead_purge(
    wanted: Filter,
    ids: Ids = None,
    every: Every = False,
    limit: Annotated[int | None, typer.Option(min=1, help="The newest so many.")] = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    why: Why = "",
    output: Output = None,
) -> None:
    """Throw dead letters away for good. Their tasks stay ended, and stay counted."""
    wanted = replace(wanted, limit=limit)
    settings = settings_for(output)
    letters = with_server(settings, lambda server: find(server, wanted, _named(ids, every)))
    missing = _missing(ids or [], letters)
    if dry_run:
        _would("be thrown away", letters)
    elif letters:
        _confirm(letters, yes)
        by = who(why)
        done = with_server(
            settings, lambda server: _in_chunks(server, letters, _purge, by, "purged")
        )
        out.print(f"{done:,} purged")
        if not done:  # somebody else was faster
            raise typer.Exit(1)
    else:
        out.print("0 purged")
    if missing or (not letters and not dry_run):
        raise typer.Exit(1)


def _named(ids: list[str] | None, every: bool) -> list[str]:
    if not ids and not every:
        fail("name entries or tasks from `fleet dead list`, or use --all", 2)
    if ids and every:
        fail("name entries or tasks, or use --all, not both", 2)
    return ids or []


def _missing(ids: Sequence[str], letters: list[Letter]) -> bool:
    """Say which of ``ids`` no letter bears."""
    there = {letter.entry for letter in letters} | {letter["id"] for letter in letters}
    missing = [name for name in ids if name not in there]
    for name in missing:
        err.print(clean(f"{name}: no such dead letter, or the filters leave it out", style="red"))
    return bool(missing)


def _would(what: str, letters: list[Letter]) -> None:
    if letters:
        out.print(_table(letters[:_SHOWN]))
    if len(letters) > _SHOWN:
        out.print(f"… and {len(letters) - _SHOWN:,} more")
    out.print(f"{len(letters):,} would {what}; nothing has been done")


def _confirm(letters: list[Letter], yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        fail(f"{len(letters):,} dead letters would be thrown away for good: say so with --yes, "
             "or look first with --dry-run", 2)  # fmt: skip
    typer.confirm(f"Throw {len(letters):,} dead letters away for good?", abort=True)


async def _revive(control: Control, entries: list[str], by: Who) -> int:
    return await control.revive(entries, by)


async def _purge(control: Control, entries: list[str], by: Who) -> int:
    return await control.purge(entries, by)


async def _in_chunks(
    server: Server,
    letters: list[Letter],
    work: Callable[[Control, list[str], Who], Awaitable[int]],
    by: Who,
    word: str,
) -> int:
    """Do something to letters, the oldest first; returns to how many it was done."""
    done = 0
    by_scene: dict[str, list[str]] = {}
    for letter in reversed(letters):
        by_scene.setdefault(letter.scene, []).append(letter.entry)
    with Progress(
        SpinnerColumn(), TextColumn(f"{{task.completed}}/{{task.total}} {word}"), console=err,
        transient=True,
    ) as bar:  # fmt: skip
        job = bar.add_task("", total=len(letters))
        for scene, entries in by_scene.items():
            for start in range(0, len(entries), _CHUNK):
                chunk = entries[start : start + _CHUNK]
                done += await work(Control(server, scene), chunk, by)
                bar.advance(job, len(chunk))
    return done


def _table(letters: list[Letter]) -> Table:
    shown = Table("died", "scene", "entry", "task", "unit", "reason", "error")
    for letter in letters:
        scene = letter.scene if letter["stage"] != "review" else f"{letter.scene} (review)"
        row = (scene, letter.entry, letter["id"], letter["u"], letter["reason"], letter["error"])
        shown.add_row(local_time(letter.at), *(clean(cell[:300]) for cell in row))
    return shown


def _as_dict(letter: Letter) -> dict[str, object]:
    return {
        "scene": letter.scene, "entry": letter.entry, "task_id": letter["id"],
        "unit": letter["u"], "stage": letter["stage"], "reason": letter["reason"],
        "error": letter["error"], "died": datetime.fromtimestamp(letter.at / 1000, UTC),
        "deliveries": int(letter["deliveries"] or 0), "history": letter["history"].splitlines(),
    }  # fmt: skip


def _everything(letter: Letter) -> RenderableType:
    head = Text.assemble((letter["id"], "bold"), f"  {letter['u']}  entry {letter.entry}\n")
    head.append_text(clean(
        f"scene {letter.scene} · at {letter['stage']} · died {local_time(letter.at)} · "
        f"delivered {letter['deliveries']} times\n"
    ))  # fmt: skip
    head.append_text(clean(letter["reason"], style="bold red"))
    head.append_text(clean(f": {letter['error']}"))
    parts: list[RenderableType] = [head]
    if letter["history"]:
        parts.append(Panel(clean(letter["history"]), title="history", title_align="left"))
    title = "the work, as queued" if letter["stage"] != "review" else "what was to be reviewed"
    parts.append(Panel(clean(_pretty(letter["p"])), title=title, title_align="left"))
    parts.append(clean(f"once more: fleet dead retry {letter.entry} --scene {letter.scene}\n"))
    return Group(*parts)


def _pretty(payload: str) -> str:
    try:
        return orjson.dumps(orjson.loads(payload), option=orjson.OPT_INDENT_2).decode()
    except ValueError:
        return payload
