"""`fleet drain`: every process that runs now ends in order, and nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from typing import Annotated

import typer

from common.presence import FORGOTTEN, SILENT, Process, living
from common.queue.connection import Server, ServerGone
from common.queue.control import drain as ask_to_drain
from common.settings import Settings
from fleet.arguments import Why
from fleet.context import (
    Output,
    clean,
    err,
    fail,
    out,
    settings_for,
    state_folder,
    who,
    with_server,
)
from fleet.status import Snapshot, look

drain_app = typer.Typer()

_LOOK = 0.3
_GONE_AFTER = 3.0
"""Seconds without an answer after which an embedded server has ended with its `fleet up`."""
_SLACK = 60.0
"""Seconds beyond the grace period of the last: reviewers wait half a minute for the rest."""


@drain_app.command(epilog='Example: fleet drain --why "upgrade"')
def drain(
    why: Why = "",
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Return when all of them have ended.")
    ] = True,
    timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds to wait. Default: twice FLEET_DRAIN_GRACE + 60."),
    ] = None,
    output: Output = None,
) -> None:
    """Ask every running process to end in order: what runs gets its grace, the rest goes back.

    Dispatchers and workers first, reviewers when nothing is left to review, `fleet up` last.
    Processes started later are not meant: the queue is kept, and they go on with it.
    """
    settings = settings_for(output)
    limit = timeout or 2 * settings.drain_grace + _SLACK

    async def work(server: Server) -> tuple[list[Process], set[Process], Snapshot | None]:
        asked = await living(server)
        await ask_to_drain(server, who(why))
        out.print(clean(f"asked to drain: {_list(asked)}"))
        left = await _wait(server, asked, limit, settings) if wait and asked else set()
        try:
            return asked, left, await look(server)
        except ServerGone:
            return asked, left, None

    asked, left, snapshot = with_server(settings, work)
    if left:
        fail(
            f"still there after {limit:.0f} s, or not heard for {SILENT:.0f} s (killed, or too "
            f"busy to say): {_list(left)}; see their logs, or ask again"
        )
    if wait and asked:
        kept = "; its queue is kept on disk" if snapshot is None else _kept(snapshot)
        out.print(f"drained{kept}")


async def _wait(
    server: Server, asked: list[Process], limit: float, settings: Settings
) -> set[Process]:
    """Wait for those processes to end; returns those of whom nobody knows that they have."""
    server.patience = _GONE_AFTER
    began = time.monotonic()
    left = set(asked)
    with err.status("") as shown:
        while left and time.monotonic() - began < limit:
            try:
                # One that ends takes itself off the list; one that only falls silent does not.
                left &= set(await living(server, within=FORGOTTEN))
                heard = left & set(await living(server))
            except ServerGone:
                if not _ended_with_its_fleet(settings):
                    raise
                return set()
            if not heard:
                break
            shown.update(f"still there: {_list(heard)}")
            await asyncio.sleep(_LOOK)
    return left


def _ended_with_its_fleet(settings: Settings) -> bool:
    """Was it the embedded server of a `fleet up`, which has taken its address away since?"""
    return (
        settings.redis_url is None and not (state_folder(settings.output) / "server.json").exists()
    )


def _list(processes: Iterable[Process]) -> str:
    counted = Counter(process.service for process in processes)
    return ", ".join(f"{n} {name}" for name, n in sorted(counted.items())) or "nothing runs"


def _kept(snapshot: Snapshot) -> str:
    if not snapshot.open_tasks:
        return "; no task was left"
    return f"; {snapshot.open_tasks} tasks are left in the queue for whoever starts next"
