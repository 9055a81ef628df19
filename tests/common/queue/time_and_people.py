"""The events that no owner of work causes: delays pass, rows expire, people step in."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from common.approvals import Word
from common.queue.control import Who
from common.waits import Waits
from tests.common.queue.watched_scene import IDS, WatchedScene, delayed_unit, picks, rarely
from tests.common.waiting import EXPIRES

ME = Who("tests", "why not")


class TimeAndPeople(WatchedScene):
    """What time brings and people do."""

    @precondition(lambda self: self.model.at("work", "delayed"))
    @rule(limit=st.sampled_from((1, 256)))
    def delays_pass_and_work_is_promoted(self, limit: int) -> None:
        async def pass_and_promote() -> tuple[list[bytes], int, list[bytes]]:
            client, delayed = self.server.client, self.keys.delayed
            before = await client.zrange(delayed, 0, -1)
            await client.zadd(delayed, dict.fromkeys(before, 1), xx=True)
            moved = await self.queue.promote(limit)
            rest = await client.zrange(delayed, 0, -1)
            if rest:
                await client.zadd(delayed, dict.fromkeys(rest, 1e15), xx=True)
            return before, moved, rest

        before, moved, rest = self.run(pass_and_promote())
        gone = {delayed_unit(member) for member in set(before) - set(rest)}
        assert moved == len(gone) == min(limit, len(before))
        for unit in self.model.at("work", "delayed"):
            if (unit.row.task_id, unit.name) in gone:
                self.model.promoted(unit)

    @precondition(lambda self: self.model.letters)
    @rule(which=st.lists(picks, min_size=1, max_size=3, unique=True))
    def revive(self, which: list[int]) -> None:
        letters = list(self.model.letters)
        chosen = [letters[n % len(letters)] for n in which] + ["1-1"]
        revived = self.run(self.control.revive(chosen, ME))
        assert revived == sum(self.model.revive(entry) for entry in chosen)

    @precondition(lambda self: self.model.letters)
    @rule(pick=picks)
    def purge(self, pick: int) -> None:
        letters = list(self.model.letters)
        chosen = [letters[pick % len(letters)], "1-1"]
        purged = self.run(self.control.purge(chosen, ME))
        assert purged == sum(self.model.purge(entry) for entry in chosen)

    @precondition(lambda self: self.model.rows)
    @rule(task_id=st.sampled_from(IDS), really=rarely)
    def cancel(self, task_id: str, really: int) -> None:
        if really:
            return
        reply = self.run(self.control.cancel(task_id, ME))
        assert (reply.outcome, reply.units) == self.model.cancel(task_id)

    @precondition(lambda self: self.model.at("review", "waiting"))
    @rule(pick=picks, says=st.sampled_from(("choose", "choose", "reject", "nothing")))
    def people_decide(self, pick: int, says: Any) -> None:
        waiting = self.model.at("review", "waiting")
        unit = waiting[pick % len(waiting)]
        waits = Waits(self.server, "code")
        if says == "nothing":
            ended = {(w.task_id, w.unit) for w in self.run(waits.expire(EXPIRES))}
            assert ended == {(u.row.task_id, u.name) for u in waiting}
            for one in waiting:
                self.model.decided(one, None)
            return
        word = Word(by="ann", at=0.0, said=says, value=["Try harder."])
        got = self.run(waits.decide(unit.approval, word))
        assert got.outcome == "decided"
        assert (got.next is not None) == (says == "choose")
        self.model.decided(unit, got.next)
        assert self.run(waits.decide(unit.approval, word)).outcome == "already"

    @rule(really=rarely)
    def pause_or_resume(self, really: int) -> None:
        on = not really
        changed = self.run((self.control.pause if on else self.control.resume)(ME))
        assert changed == (self.model.paused != on)
        self.model.paused = on

    @precondition(lambda self: any(r.state != "open" for r in self.model.rows.values()))
    @rule(pick=picks)
    def a_ledger_expires(self, pick: int) -> None:
        ended = sorted(i for i, row in self.model.rows.items() if row.state != "open")
        task_id = ended[pick % len(ended)]

        async def expire() -> int:
            left = await self.server.client.pttl(self.keys.ledger(task_id))
            await self.server.client.delete(self.keys.ledger(task_id))
            return int(left)

        assert self.run(expire()) > 0, "the row of an ended task expires"
        self.model.expire(task_id)
