"""`fleet doctor`: what the looks of doctor.py found, as a table and an exit code."""

from __future__ import annotations

import asyncio

import typer
from rich.table import Table
from rich.text import Text

from fleet.context import Output, out, settings_for

MARKS = {
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "broken": ("✗", "red"),
    "not used": ("-", "dim"),
}


def doctor(output: Output = None) -> None:
    """Check everything the fleet stands on, and say how to mend what is wrong.

    Every sandbox back-end is tried for real: each limit is run into. One that is not configured
    (FLEET_SANDBOX) may be missing.
    """
    from fleet.doctor import examine

    findings = asyncio.run(examine(settings_for(output)))
    shown = Table("", "what", "finding")
    for finding in findings:
        mark, style = MARKS[finding.state]
        shown.add_row(Text(mark, style=style), finding.what, Text(finding.detail))
    out.print(shown)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(1)
