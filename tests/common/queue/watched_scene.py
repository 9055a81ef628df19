"""A scene on a real server beside its model: read back, and compared after every step."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from common.queue.connection import Server
from common.queue.control import Control
from common.queue.keys import REVIEWERS, WORKERS
from common.queue.scene_queue import Lease, SceneQueue
from tests.common.queue.model import Model

IDS = [f"t{n}" for n in range(8)]
CONSUMERS = ("a", "b", "c")
COUNTED = (
    "tasks", "units", "committed", "retried", "waited", "cancelled", "dead", "dead_work",
    "dead_review", "lost",
    "reclaimed", "released", "reviewed", "passed", "failed", "unverified", "accepted", "rejected",
    "human", "iterate", "tasks_accepted", "tasks_rejected", "tasks_human", "tasks_dead",
    "tasks_cancelled", "held", "with_people", "passed_first", "failed_first", "accepted_first",
    "accepted_retried",
)  # fmt: skip

rarely = st.sampled_from((1, 2, 3, 4, 5, 0))
"""Zero one time in six: events that would otherwise be most of what happens."""
picks = st.integers(0, 31)
"""Which of what there is; taken modulo its number."""


class WatchedScene(RuleBasedStateMachine):
    """One scene on an empty server, three workers and three reviewers, and what should be there."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.model = Model()
        self.given: dict[str, list[Lease]] = {"work": [], "review": []}
        """Every lease ever handed out, by stage: late owners come back with old ones."""

    def connect(self) -> None:
        async def connect() -> None:
            self.server = Server(self.url, patience=10)
            await self.server.client.flushall()

        self.run(connect())
        self.queues = {
            (stage, name): SceneQueue(self.server, "code", consumer=name, stage=stage)  # type: ignore[arg-type]
            for stage in ("work", "review")
            for name in CONSUMERS
        }
        self.queue = self.queues["work", "a"]
        self.control = Control(self.server, "code")
        self.keys = self.queue.keys

    def teardown(self) -> None:
        if hasattr(self, "server"):
            self.run(self.server.close())
        self.runner.close()

    def run(self, awaitable: Any) -> Any:
        return self.runner.run(awaitable)

    # -- what must hold after every step -----------------------------------------------------

    @invariant()
    def everything_is_where_the_model_says(self) -> None:
        if not hasattr(self, "server"):
            return
        seen = self.run(self._look())
        self._note_letters(seen["dead"])
        for index, stream in enumerate(("events", "hi", "mid", "lo")):
            stage = "work" if index else "review"
            here = [
                u for u in self.model.at(stage, "queued", "leased", "released") if u.stream == index
            ]
            found = sorted((f[b"id"].decode(), f[b"u"].decode()) for _, f in seen[stream])
            assert found == sorted((u.row.task_id, u.name) for u in here), stream
            held = {
                (u.entry, u.lease.consumer if u.lease else "@released", u.deliveries)
                for u in here
                if u.where != "queued"
            }
            assert _pending(seen["pending"][index]) == held, stream
        delayed = sorted(delayed_unit(member) for member in seen["delayed"])
        assert delayed == sorted((u.row.task_id, u.name) for u in self.model.at("work", "delayed"))
        asked = sorted(member.decode() for member in seen["waits"])
        waiting = self.model.at("review", "waiting")
        assert asked == sorted(f"{u.name}|{u.row.task_id}" for u in waiting)
        counts = seen["counts"]
        assert counts.undecided == len(waiting)
        assert counts.unaccounted == 0
        got = {name: counts[name] for name in COUNTED}
        assert got == {name: self.model.counters[name] for name in COUNTED}
        work = self.model.at
        assert (counts.waiting, counts.running, counts.delayed, counts.reviewing) == (
            len(work("work", "queued", "released")),
            len(work("work", "leased")),
            len(work("work", "delayed")),
            len(work("review", "queued", "leased", "released")),
        )
        assert bool(counts.paused) == self.model.paused
        opened = sum(row.state == "open" for row in self.model.rows.values())
        assert counts.open_tasks == opened
        assert all(unit.committed <= 1 for unit in self.model.units)

    @invariant()
    def every_row_says_what_became_of_its_task(self) -> None:
        if not hasattr(self, "server"):
            return

        async def rows() -> list[dict[bytes, bytes]]:
            async with self.server.client.pipeline(transaction=False) as pipe:
                for task_id in IDS:
                    pipe.hgetall(self.keys.ledger(task_id))
                return list(await pipe.execute())

        for task_id, found in zip(IDS, self.run(rows()), strict=True):
            row = self.model.rows.get(task_id)
            if row is None:
                assert not found
                continue
            assert found[b"st"].decode() == row.state
            assert int(found.get(b"score", -1)) == row.score
            assert int(found.get(b"first", 0)) == (row.first or 0)
            held = {b"e:" + n.encode() for n, u in row.units.items() if u.where == "held"}
            assert {field for field in found if field.startswith(b"e:")} == held
            for name, unit in row.units.items():
                said = found.get(b"u:" + name.encode(), b"queued").decode()
                assert said == unit.outcome, name

    async def _look(self) -> dict[str, Any]:
        client, streams = self.server.client, (self.keys.events, *self.keys.lanes)
        async with client.pipeline(transaction=False) as pipe:
            for stream in streams:
                pipe.xrange(stream)
            for stream in streams:
                group = REVIEWERS if stream == self.keys.events else WORKERS
                pipe.xpending_range(stream, group, "-", "+", 1000)
            pipe.zrange(self.keys.delayed, 0, -1)
            pipe.xrange(self.keys.dead)
            pipe.zrange(self.keys.waits, 0, -1)
            row = await pipe.execute(raise_on_error=False)
        return {
            **dict(zip(("events", "hi", "mid", "lo"), row[:4], strict=True)),
            "pending": row[4:8], "delayed": row[8], "dead": row[9], "waits": row[10],
            "counts": await self.queue.counts(),
        }  # fmt: skip

    def _note_letters(self, rows: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        """Tell which dead letter is whose: each unit that died has exactly one."""
        dead = [u for u in self.model.units if u.where == "dead"]
        for entry, fields in rows:
            if entry.decode() in self.model.letters:
                continue
            name = (fields[b"id"].decode(), fields[b"u"].decode(), fields[b"stage"].decode())
            known = set(map(id, self.model.letters.values()))
            [unit] = [
                u for u in dead if (u.row.task_id, u.name, u.stage) == name and id(u) not in known
            ]
            self.model.letters[entry.decode()] = unit
        assert sorted(self.model.letters) == sorted(e.decode() for e, _ in rows)
        assert len(dead) == len(rows)


def _pending(rows: Any) -> set[tuple[str, str, int]]:
    if not isinstance(rows, list):
        return set()  # no group yet: nobody has taken anything
    return {(r["message_id"].decode(), r["consumer"].decode(), r["times_delivered"]) for r in rows}


def delayed_unit(member: bytes) -> tuple[str, str]:
    _, unit, task_id = member.decode().split("|", 2)
    return task_id, unit
