"""`fleet export`: accepted attempts as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.text import Text

from exporters.export import FORMATS, Selection
from exporters.export import export as write_export
from fleet.arguments import scene_name
from fleet.context import Output, clean, err, fail, guard, out, settings_for, store_of


def export(
    fmt: Annotated[str, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.")],
    out_file: Annotated[Path | None, typer.Option("--out", help="Default: FORMAT.jsonl")] = None,
    output: Output = None,
    scene: Annotated[
        list[str] | None,
        typer.Option(parser=scene_name, metavar="SCENE", help="Only these scenes."),
    ] = None,
    include_embedded: Annotated[
        bool, typer.Option("--include-embedded", help="Also the small demonstration model's.")
    ] = False,
    include_unverified: Annotated[
        bool, typer.Option("--include-unverified", help="Also attempts no check has judged.")
    ] = False,
) -> None:
    """Write accepted, verified attempts as JSON lines."""
    if fmt not in FORMATS:
        fail(f"no format {fmt!r}; there is: {', '.join(FORMATS)}", 2)
    settings = settings_for(output)
    store = store_of(settings)
    target = out_file or settings.output / f"{fmt}.jsonl"
    selection = Selection(
        scenes=frozenset(scene) if scene else None,
        embedded=include_embedded,
        unverified=include_unverified,
    )
    with Progress(
        SpinnerColumn(), TextColumn("{task.completed} attempts read"), console=err, transient=True
    ) as bar:
        job = bar.add_task("", total=None)
        done = guard(
            lambda: write_export(
                store, fmt, target, selection,
                progress=lambda seen: bar.update(job, completed=seen),
            )
        )  # fmt: skip
    out.print(f"{done.rows} rows in {target}")
    for reason, count in sorted(done.left_out.items()):
        out.print(Text(f"{count} left out: {reason}", style="dim"))
    for trouble in done.damaged:
        err.print(clean(f"left out: {trouble}", style="red"))
