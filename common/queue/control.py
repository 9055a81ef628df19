"""What people do to a scene: pause it, cancel a task, look after dead letters. All of it audited.

Every change says by whom and why, and leaves a row in the scene's audit stream in the same call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from common.queue.connection import Server
from common.queue.keys import FLEET, Keys
from common.queue.pages import pages

AUDIT = f"{FLEET}audit"
"""Stream of what people did to the whole fleet: draining, budgets."""
_DRAIN = f"{FLEET}drain"


@dataclass(frozen=True)
class Who:
    """Who does it, and why; both end in the audit."""

    by: str
    why: str = ""


@dataclass(frozen=True)
class Cancelled:
    """What became of a request to cancel a task."""

    outcome: Literal["unknown", "ended", "cancelled", "stopping"]
    """`ended`: it had ended before; `stopping`: its workers end it at their next heartbeat."""
    state: str = ""
    units: int = 0
    """Units of work that waited and were ended by this call."""


class Control:
    """One scene in the hands of a person."""

    def __init__(self, server: Server, scene: str, *, ledger_ttl: float = 7 * 86_400.0) -> None:
        self.server = server
        self.scene = scene
        self.keys = Keys(scene)
        self._ttl_ms = int(ledger_ttl * 1000)

    async def pause(self, who: Who) -> bool:
        """Hand out no more work; what runs, runs on. False when it was paused already."""
        return bool(await self._call("pause", (who.by, who.why, "1")))

    async def resume(self, who: Who) -> bool:
        """Hand out work again. False when it was not paused."""
        return bool(await self._call("pause", (who.by, who.why, "0")))

    async def cancel(self, task_id: str, who: Who) -> Cancelled:
        """End a task: what waits at once, what runs at its worker's next heartbeat."""
        argv = [who.by, who.why, self._ttl_ms, task_id]
        keys = (self.keys.prefix, *self.keys.lanes)
        code, *rest = await self.server.fcall("cancel", keys, argv)
        if code == -1:
            return Cancelled("unknown")
        if code == 0:
            return Cancelled("ended", rest[0].decode())
        ended, waiting = rest[1], await self._waiting(task_id)
        if rest[0] == b"open" and waiting:
            code, *more = await self.server.fcall("cancel", keys, [*argv, *waiting])
            if code == 1:
                rest, ended = more, ended + more[1]
        state = rest[0].decode()
        return Cancelled("cancelled" if state != "open" else "stopping", state, ended)

    async def _waiting(self, task_id: str) -> list[Any]:
        """Find a task's entries in the lanes: lane, entry, lane, entry, …"""
        found: list[Any] = []
        for number, lane in enumerate(self.keys.lanes, 1):
            async for entry, fields in pages(self.server, lane):
                if fields.get("id") == task_id:
                    found += [number, entry]
        return found

    async def revive(self, entries: Sequence[str], who: Who) -> int:
        """Run dead letters again, with fresh retry budgets; returns how many were there."""
        keys = (self.keys.prefix, self.keys.events, *self.keys.lanes)
        return int(await self.server.fcall("revive", keys, (who.by, who.why, *entries)))

    async def purge(self, entries: Sequence[str], who: Who) -> int:
        """Throw dead letters away for good; returns how many were there."""
        return int(await self._call("purge", (who.by, who.why, *entries)))

    async def _call(self, name: str, argv: Sequence[Any]) -> Any:
        return await self.server.fcall(name, (self.keys.prefix,), argv)


async def record(server: Server, by: str, action: str, target: str, detail: bytes) -> None:
    """Leave a row in the audit of the whole fleet."""
    await server.fcall("record", (FLEET,), (by, action, target, detail))


async def drain(server: Server, who: Who) -> None:
    """Ask every process that runs now to drain and end; those started later are not meant."""
    await server.fcall("drain", (FLEET,), (who.by, who.why))


async def drain_asked(server: Server, since: float) -> str | None:
    """Return who asked for a drain after ``since`` (server time, Unix seconds); None if nobody."""
    row = await server.persist(lambda: server.client.get(_DRAIN))
    told = orjson.loads(row) if row else {}
    return str(told["by"]) if told.get("at", 0.0) > since else None
