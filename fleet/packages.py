"""`fleet packages`: what Python programs of tasks can import besides the standard library."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from common.failures import ConfigurationError
from fleet.context import err, fail, out, settings_for
from workers.sandboxes.nsjail import interpreter
from workers.sandboxes.preparing import builder
from workers.sandboxes.python_packages import PREPARE, Prepared, find

packages_app = typer.Typer(
    help="Python packages that tasks can ask for: made once on each host, read-only afterwards.",
    no_args_is_help=True,
)

LOCKS = (
    Path(__file__).with_name("sandbox.lock"),  # in a wheel
    Path(__file__).parents[1] / "requirements" / "sandbox.lock",
)


@packages_app.command("prepare", epilog="Example: fleet packages prepare --lock mine.lock")
def packages_prepare(
    lock: Annotated[
        Path | None,
        typer.Option(help="Another list: name==version and hashes, as uv and pip-tools write it."),
    ] = None,
) -> None:
    """Fetch the packages of a list for the sandboxes' Python. Done already, it takes a moment.

    Only wheels with a listed hash are taken, and nothing of them is run. Started again, it goes on
    where it stopped. Running workers keep what they have; restarted, they use this list.
    """
    settings = settings_for(None)
    chosen = lock or next((path for path in LOCKS if path.is_file()), None)
    if chosen is None:
        fail("this installation has no list of packages; give one with --lock", 78)
    last = ""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        console=err, transient=True, disable=not err.is_terminal,
    ) as bar:  # fmt: skip
        job = bar.add_task("", total=None)

        def told(what: str, done: int, total: int) -> None:
            nonlocal last
            bar.update(job, description=what, completed=done, total=total)
            if not err.is_terminal and what != last:
                err.print(f"{what} ({done} of {total})", markup=False)
            last = what

        try:
            python = asyncio.run(interpreter.find())
            prepared, work = builder.prepare(settings.packages, chosen, python.path, told)
        except ConfigurationError as error:
            fail(str(error), 78)
    out.print("prepared" if work else "was prepared already", style="green")
    _show(prepared)


@packages_app.command("list", epilog="Example: fleet packages list --json")
def packages_list(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the packages that tasks can ask for on this host."""
    settings = settings_for(None)
    try:
        python = asyncio.run(interpreter.find())
        prepared = find(settings.packages, python.version)
    except ConfigurationError as error:
        fail(str(error), 78)
    if prepared is None:
        fail(f"nothing in {settings.packages} for Python {python.version}: run `{PREPARE}`")
    if as_json:
        out.print_json(prepared.model_dump_json())
    else:
        _show(prepared)


def _show(prepared: Prepared) -> None:
    shown = Table("package", "version", "import", "needs", "programs")
    for name, package in sorted(prepared.manifest.packages.items()):
        lists = (", ".join(names) for names in (package.modules, package.requires, package.scripts))
        shown.add_row(name, package.version, *lists)
    out.print(shown)
    out.print(Text(f"{prepared.folder}, for {prepared.manifest.interpreter}", style="dim"))
