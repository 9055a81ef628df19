"""The fleet at a glance: what waits, runs and came of it, per scene."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
from rich import box
from rich.table import Table
from rich.text import Text

from common.presence import FORGOTTEN, Process, living
from common.queue.connection import Server
from common.queue.keys import Keys
from common.queue.scene_queue import ENDS, Counts, SceneQueue
from common.quota.budgets import Budget, read_budgets
from common.quota.terms import amount
from common.task import SceneName

_ROWS = (
    ("workers", None, ""), ("tasks", "tasks", "bold"),
    ("  waiting", "waiting", ""), ("  running", "running", "cyan"),
    ("  delayed", "delayed", ""), ("  held for their group", "held", ""),
    ("  in review", "reviewing", ""), ("  waiting for people", "undecided", "yellow"),
    ("attempts passed", "passed", "green"), ("attempts failed", "failed", "red"),
    ("sent back, revised", "iterate", ""), ("accepted", "accepted", "bold green"),
    ("  at the first try", "accepted_first", ""), ("  after changes", "accepted_retried", ""),
    ("rejected", "rejected", ""), ("unverified", "human", "yellow"),
    ("waited for limits", "waited", "yellow"), ("cancelled", "tasks_cancelled", "yellow"),
    ("dead", "dead", "bold red"),
)  # fmt: skip
"""What a row is called, the count or counter behind it, and its style when it is not 0."""
_LIVE = {"waiting", "running", "delayed", "reviewing", "undecided"}
"""Of those, what is counted by looking; the rest are counters."""

_ALWAYS = (
    "tasks",
    "units",
    "committed",
    "retried",
    "waited",
    "dead",
    "held",
    "accepted_first",
    "accepted_retried",
    *(f"tasks_{e}" for e in ENDS),
)
"""Counters that `--json` has even while they are 0."""


@dataclass(frozen=True)
class Snapshot:
    """What the server says of all scenes that have ever had a task, or are paused."""

    scenes: dict[str, Counts]
    workers: dict[str, int]
    """Living workers per scene."""
    files: dict[str, dict[str, Any]]
    """What the dispatcher says of each file: offset, size."""
    budgets: dict[str, Budget] = field(default_factory=dict)
    """What the models may cost and have cost, by scope."""

    @property
    def open_tasks(self) -> int:
        return sum(counts.open_tasks for counts in self.scenes.values())

    def held_up(self, scenes: Iterable[str]) -> list[str]:
        """Return why open tasks of ``scenes`` do not go on, where a person must act."""
        found = [
            f"{name}: {counts.open_tasks} tasks wait: paused by {counts.paused} "
            f"(fleet resume {name})"
            for name, counts in self.scenes.items()
            if name in scenes and counts.paused and counts.open_tasks
        ]
        return found + [line for name, line in _asked(self) if name in scenes]


def goes_on(counts: Counts) -> bool:
    """Say whether anything is left to do but for people."""
    work = counts.waiting + counts.running + counts.delayed + counts.reviewing + counts["held"]
    over = counts["with_people"] > counts.undecided  # the reviewer has yet to end one
    return bool(counts.open_tasks) and (work > 0 or over or not counts.undecided)


async def look(server: Server) -> Snapshot:
    """Read everything a status shows."""
    names = [scene.value for scene in SceneName]
    counts = await asyncio.gather(*(SceneQueue(server, name).counts() for name in names))
    scenes = {n: c for n, c in zip(names, counts, strict=True) if c["tasks"] or c.paused}
    told = await server.persist(lambda: server.client.hgetall("fleet:dispatcher"))
    files = {name.decode(): orjson.loads(value) for name, value in told.items()}
    workers = await _workers(server, names, await living(server, within=FORGOTTEN))
    return Snapshot(scenes, workers, files, await read_budgets(server))


async def _workers(server: Server, names: list[str], processes: list[Process]) -> dict[str, int]:
    """Count living workers per scene, by their cards.

    Found through the list of processes: looking for their keys by pattern would walk through the
    ledger of every task, twice a second.
    """
    asked = [
        (name, process.consumer)
        for process in processes
        if process.service == "worker"
        for name in names
    ]
    workers = dict.fromkeys(names, 0)
    if not asked:
        return workers

    async def ask() -> list[int]:
        async with server.client.pipeline(transaction=False) as pipe:
            for name, consumer in asked:
                pipe.exists(Keys(name).card(consumer))
            return list(await pipe.execute())

    for (name, _), there in zip(asked, await server.persist(ask), strict=True):
        workers[name] += there
    return workers


def as_dict(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    """Return the numbers for programs, by scene."""
    return {
        name: {
            "waiting": c.waiting, "running": c.running, "delayed": c.delayed,
            "reviewing": c.reviewing, "paused": c.paused, "open_tasks": c.open_tasks,
            "unaccounted": c.unaccounted, "workers": snapshot.workers.get(name, 0),
            **dict.fromkeys(_ALWAYS, 0), **c.counters, "undecided": c.undecided,
        }
        for name, c in snapshot.scenes.items()
    }  # fmt: skip


def table(snapshot: Snapshot) -> Table:
    """Return the numbers as a table, a column per scene."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    shown.add_column("")
    # A scene that is paused and has never had a task is in the remarks.
    scenes = {name: counts for name, counts in snapshot.scenes.items() if counts["tasks"]}
    for name, counts in scenes.items():
        shown.add_column(f"{name} (paused)" if counts.paused else name, justify="right")
    for label, key, style in _ROWS:
        cells = []
        for name, counts in scenes.items():
            if key is None:
                value = snapshot.workers.get(name, 0)
                style = "bold red" if goes_on(counts) and not value else ""
            else:
                value = getattr(counts, key) if key in _LIVE else counts[key]
            cells.append(Text(str(value), style=style if value or key is None else "dim"))
        shown.add_row(label, *cells)
    return shown


def remarks(snapshot: Snapshot) -> list[str]:
    """Return what a person should know besides the numbers."""
    found = _paused(snapshot) + [line for _, line in _asked(snapshot)]
    for name, counts in snapshot.scenes.items():
        if counts.unaccounted:
            found.append(f"{name}: {counts.unaccounted} units of work unaccounted for: a bug")
        if goes_on(counts) and not snapshot.workers.get(name):
            found.append(f"{name}: {_no_workers(name, counts)}")
        if counts["human"]:
            found.append(
                f"{name}: {counts['human']} came to no verdict: "
                "fleet review next shows those you have not seen"
            )
        if counts["dead"]:
            found.append(f"{name}: {counts['dead']} dead letters: fleet dead list")
    for scope, budget in snapshot.budgets.items():
        for unit, one in (("usd", budget.usd), ("tok", budget.tokens)):
            if one.limit is not None and one.exhausted:
                found.append(
                    f"the budget of {scope} is spent: {amount(unit, one.spent)} of "
                    f"{amount(unit, one.limit)} (fleet budget set --help)"
                )
    for path, told in snapshot.files.items():
        behind = int(told.get("size", 0)) - int(told.get("offset", 0))
        if behind > 0:
            found.append(f"{path}: {behind:,} bytes not dispatched yet")
    return found


def _paused(snapshot: Snapshot) -> list[str]:
    by_words: dict[str, list[str]] = {}
    for name, counts in snapshot.scenes.items():
        if counts.paused:
            by_words.setdefault(counts.paused, []).append(name)
    return [
        f"{', '.join(names)}: paused by {words} (fleet resume {' '.join(names)})"
        for words, names in by_words.items()
    ]


def _asked(snapshot: Snapshot) -> list[tuple[str, str]]:
    """Return the scenes in which something waits for a person, and what to do about it."""
    return [
        (name, f"{name}: {_number(people, 'task waits', 'tasks wait')} for a person: "
         "fleet approvals list")
        for name, counts in snapshot.scenes.items()
        if (people := counts.undecided)
    ]  # fmt: skip


def _number(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def _no_workers(name: str, counts: Counts) -> str:
    """Say what it means that no worker lives: was there none, or are they gone?"""
    start = f"start some: fleet up, or python -m workers {name}"
    if counts.running:
        return (
            f"its workers are all gone; {counts.running} attempts under way go to whoever starts "
            f"next, {counts.waiting + counts.delayed} wait ({start})"
        )
    if counts["committed"] or counts["released"] or counts["retried"]:
        return f"its workers are all gone; {counts.open_tasks} tasks wait ({start})"
    return f"no worker serves this scene; {counts.open_tasks} tasks wait ({start})"
