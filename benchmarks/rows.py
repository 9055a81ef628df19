"""What a benchmark says: numbers with their goals, as one table for a terminal or for the docs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rich.table import Table


@dataclass(frozen=True)
class Goal:
    """A bound that the project set itself."""

    bound: float
    kind: Literal["at least", "at most"]

    def met(self, value: float) -> bool:
        return value >= self.bound if self.kind == "at least" else value <= self.bound


def at_least(bound: float) -> Goal:
    return Goal(bound, "at least")


def at_most(bound: float) -> Goal:
    return Goal(bound, "at most")


@dataclass(frozen=True)
class Row:
    """One measured number."""

    what: str
    value: float | None
    """None: it could not be measured; the note says why."""
    unit: str = ""
    goal: Goal | None = None
    note: str = ""

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        value = "not measured" if self.value is None else f"{number(self.value)} {self.unit}"
        if self.goal is None:
            return self.what, value.strip(), "", "", self.note
        sign = "≥" if self.goal.kind == "at least" else "≤"
        goal = f"{sign} {number(self.goal.bound)} {self.unit}".strip()
        met = "" if self.value is None else "met" if self.goal.met(self.value) else "missed"
        return self.what, value.strip(), goal, met, self.note


@dataclass
class Section:
    """One group of numbers, and tables of its own where it compares things."""

    title: str
    rows: list[Row] = field(default_factory=list)
    headings: tuple[str, ...] = ()
    lines: list[tuple[str, ...]] = field(default_factory=list)
    """A side-by-side table with these headings."""
    notes: list[str] = field(default_factory=list)


def number(value: float) -> str:
    """Write a number with about three digits."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def machine() -> str:
    """Describe what this ran on, in words, without names."""
    kilobytes = int(Path("/proc/meminfo").read_text().split()[1])
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {kilobytes / 1e6:.0f} GB of memory, "
        f"{platform.system()}, Python {platform.python_version()}; server, workers and peers "
        "share the cores; Valkey with appendonly, fsync every second, over loopback"
    )


def tables(sections: Sequence[Section]) -> list[Table]:
    """Return one table a side-by-side comparison, and at the end one of all goals and numbers."""
    shown = []
    for section in sections:
        if section.lines:
            shown.append(_grid(section.title, section.headings, section.lines))
    goals = [row.cells for section in sections for row in section.rows]
    shown.append(_grid("all numbers", ("what", "measured", "goal", "", "note"), goals))
    return shown


def _grid(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 or heading == "note" else "right")
    for line in lines:
        table.add_row(*line)
    return table


PEERS = (
    "The whole takes about seven minutes. The peers' environments are made by "
    "`benchmarks/peers/setup.sh` under `benchmarks/.peers/`, from pinned lists; the run does that "
    "first."
)


def markdown(sections: Sequence[Section], *, names: Sequence[str], file: Path, load: float) -> str:
    """Return the page of a run of the parts ``names``; none: of all."""
    parts = [
        "# Benchmarks" + (f": {', '.join(names)}" if names else ""),
        f"Written by `{' '.join(('python -m benchmarks', *names, '--write', str(file)))}`; run it "
        "again to rewrite this page. The goals are those the project set itself; a missed one says "
        "so. Nothing here decides a test. Rates depend on the machine and on what else it does: "
        "compare rows of one run with each other, never with another page's.",
        *(() if names else (PEERS,)),
        f"Machine: {machine()}. Load average at the start: {load:.1f}.",
    ]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.lines:
            parts.append(_markdown_table(section.headings, section.lines))
        if section.rows:
            cells = [row.cells for row in section.rows]
            parts.append(_markdown_table(("what", "measured", "goal", "", "note"), cells))
        parts += section.notes
    return "\n\n".join(parts) + "\n"


def _markdown_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---" if i == 0 or h == "note" else "---:" for i, h in enumerate(headings)]
    rows = [headings, rule, *lines]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows)
