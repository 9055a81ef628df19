"""`fleet audit`: what people did to the fleet and to its scenes, in the order it happened."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from common import audit as log
from common.queue.connection import Server
from common.queue.control import AUDIT
from common.queue.keys import Keys
from fleet.arguments import ALL_SCENES, SceneOption, local_time
from fleet.context import Output, clean, guard, out, settings_for, with_server

audit_app = typer.Typer()


@dataclass(frozen=True, order=True)
class Row:
    """One thing somebody did."""

    at: int
    """Unix, ms, the server's clock."""
    order: int
    """Of those in the same millisecond."""
    scene: str
    """Empty: the fleet as a whole."""
    by: str
    action: str
    target: str
    detail: str


@audit_app.command(epilog="Example: fleet audit --scene code --limit 20")
def audit(
    scene: SceneOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="The latest so many.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    output: Output = None,
) -> None:
    """Show who paused, cancelled, retried, set or approved what, and why. Newest last."""
    streams = {scene: Keys(scene).audit} if scene else {"": AUDIT}
    if not scene:
        streams |= {name: Keys(name).audit for name in ALL_SCENES}
    settings = settings_for(output)
    said = guard(lambda: words(settings.output, scene, limit))
    done = with_server(settings, lambda server: latest(server, streams, limit))
    rows = sorted(done + said)[-limit:]
    if as_json:
        told = [
            {"at": datetime.fromtimestamp(row.at / 1000, UTC), "scene": row.scene, "by": row.by,
             "action": row.action, "target": row.target, "detail": row.detail}
            for row in rows
        ]  # fmt: skip
        print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())  # noqa: T201
        return
    if not rows:
        out.print("nobody has done anything yet")
        return
    shown = Table("when", "by", "scene", "action", "target", "detail")
    for row in rows:
        cells = (row.by, row.scene, row.action, row.target, row.detail)
        shown.add_row(local_time(row.at), *(clean(cell[:300]) for cell in cells))
    out.print(shown)


async def latest(server: Server, streams: dict[str, str], limit: int) -> list[Row]:
    """Return the latest rows of audit streams (scene → key), oldest first."""

    async def read(scene: str, stream: str) -> list[Row]:
        rows: list[Any] = await server.persist(lambda: server.client.xrevrange(stream, count=limit))
        return [_row(scene, entry.decode(), fields) for entry, fields in rows]

    found = await asyncio.gather(*(read(*item) for item in streams.items()))
    return sorted(row for rows in found for row in rows)[-limit:]


def _row(scene: str, entry: str, fields: dict[bytes, bytes]) -> Row:
    said = {k.decode(): v.decode(errors="replace") for k, v in fields.items()}
    at, order = entry.split("-")
    by, action, target, detail = (said.get(k, "") for k in ("by", "action", "target", "detail"))
    return Row(int(at), int(order), scene, by, action, target, detail)


def words(root: Path, scene: str | None, limit: int) -> list[Row]:
    """Return the latest words on approvals in the log below the output folder ``root``.

    What somebody asked for is left out where the log has what came of it. Raises `StoreError`.
    """
    came_of = {_word(line) for line in _on_approvals(root, scene) if "entry" in line}
    rows = (
        _said(line)
        for line in _on_approvals(root, scene)
        if "entry" in line or _word(line) not in came_of
    )
    return sorted(deque(rows, maxlen=limit))


def _on_approvals(root: Path, scene: str | None) -> Iterator[dict[str, Any]]:
    for line in log.read(root):
        if line.get("approval_id") and line.get("by") and scene in (None, line.get("scene")):
            yield line


def _word(line: dict[str, Any]) -> tuple[str, str, str]:
    return str(line["approval_id"]), str(line["by"]), str(line.get("at"))


def _said(line: dict[str, Any]) -> Row:
    """Return one word as a row, at the time of the server where it got there."""
    at, order = int(float(line.get("at") or 0) * 1000), 0
    action = str(line.get("said") or line.get("decision") or "")
    if "entry" in line:
        at, order = (int(part) for part in str(line["entry"]).split("-"))
        state = str(line.get("state") or "")
    else:
        action, state = f"asked to {action}", ""
    what = f"{line.get('field', '')} of {line.get('unit', '')} ({line['approval_id']})"
    detail = ": ".join(part for part in (what, state, str(line.get("why") or "")) if part)
    target = str(line.get("task_id", ""))
    return Row(at, order, str(line.get("scene", "")), str(line["by"]), action, target, detail)
