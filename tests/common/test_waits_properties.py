"""Whatever people say, in any order, at once, again, too late: red needs them, nothing doubles.

Hypothesis makes up waits and what happens to them, on a real server; after every step what went to
work and what was logged is compared with what was really said and answered.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any

import orjson
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from common.approvals import Approval, Wait, Word
from common.queue.connection import Server
from common.queue.control import Control, Who
from common.queue.embedded import EmbeddedServer
from common.queue.keys import Keys
from common.queue.scene_queue import SceneQueue
from common.task import Assignment
from common.waits import Decided, NoSuchApproval, Waits
from tests.common.waiting import a_wait, approval, green, put, says
from tests.helpers import entries_of, task

PEOPLE = ("ann", "Ann@here ", "ANN@there", "bob", "eve@here", "expiry", "@here")
"""Three of them are one, and one is nobody."""
KEYS = Keys("code")
EXPIRY = 1000.0
NOW = "Print 1."
VALUES = (NOW, "Print 2.", "Print 3.", "Mine.", "", None, 7)

words = st.builds(
    Word,
    by=st.sampled_from(PEOPLE),
    at=st.sampled_from((1.0, 2.0, 2.0, EXPIRY)),
    said=st.sampled_from(("choose", "choose", "approve", "approve", "approve", "reject")),
    value=st.sampled_from(VALUES),
)
reds = st.lists(
    st.tuples(st.sampled_from(("memory_mb", "network", "image")), st.integers(1, 3)),
    max_size=3, unique_by=lambda row: row[0],
)  # fmt: skip


def name_of(word: Word) -> str:
    return word.by.split("@")[0].strip().casefold()


class People(RuleBasedStateMachine):
    """Tasks that wait, and people who all have something to say."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.asked: dict[str, Wait] = {}
        """By task: what was asked, as it was asked."""
        self.said: dict[str, list[Word]] = defaultdict(list)
        """By approval: every word that was ever sent."""
        self.counted: Counter[tuple[str, str, str]] = Counter()
        """Words that were answered with `counted` or `decided`, as the log should have them."""
        self.tasks = 0

    def run(self, awaitable: Any) -> Any:
        return self.runner.run(awaitable)

    def teardown(self) -> None:
        if hasattr(self, "server"):
            self.run(self.server.close())
        self.runner.close()

    @initialize()
    def begin(self) -> None:
        async def begin() -> None:
            self.server = Server(self.url, patience=10)
            await self.server.client.flushall()

        self.run(begin())

    # -- what happens ------------------------------------------------------------------------

    @rule(reds=reds, yellow=st.booleans(), editable=st.booleans(), greens=st.booleans())
    def somebody_is_asked(
        self, reds: list[tuple[str, int]], yellow: bool, editable: bool, greens: bool
    ) -> None:
        task_id = f"t{self.tasks}"
        before = Assignment(task=task(task_id))
        approvals = [
            approval(f"{task_id}-{name}", f"task.constraints.{name}", f"new {name}", people=people)
            for name, people in reds
        ]
        if yellow or not reds:
            approvals.append(
                approval(
                    f"{task_id}-text", "task.description", "Print 2.", before=NOW, level="yellow",
                    options=("Print 2.", "Print 3.", NOW), editable=editable,
                )
            )  # fmt: skip
        wait = a_wait(
            before, *approvals, expires_at=EXPIRY, greens=(green(before),) if greens else ()
        )
        self.tasks += 1
        self.asked[task_id] = wait
        self.run(self._put(wait))

    async def _put(self, wait: Wait) -> None:
        work = SceneQueue(self.server, "code")
        while leases := await work.take(50):  # what went to work before is out of the way
            assert leases
        await put(self.server, wait)

    @precondition(lambda self: self.asked)
    @rule(
        said=st.lists(st.tuples(st.integers(0, 40), words), min_size=1, max_size=8),
        at_once=st.booleans(),
    )
    def people_speak(self, said: list[tuple[int, Word]], at_once: bool) -> None:
        """Each through a connection of their own, as after a restart."""
        every = [a for wait in self.asked.values() for a in wait.approvals]
        # Mostly about what was asked last: else nothing would ever be agreed on.
        chosen = [(every[-1 - n % min(len(every), 3)], word) for n, word in said]
        groups = [chosen] if at_once else [[one] for one in chosen]
        for group in groups:
            self.run(self._speak(group))

    async def _speak(self, group: list[tuple[Approval, Word]]) -> None:
        for one, word in group:
            self.said[one.approval_id].append(word)
        answers = await asyncio.gather(
            *(Waits(self.server, "code").decide(a.approval_id, word) for a, word in group)
        )
        for (one, word), answer in zip(group, answers, strict=True):
            self._answered(one, word, answer)

    def _answered(self, one: Approval, word: Word, answer: Decided) -> None:
        assert answer.reason
        if answer.outcome in ("counted", "decided"):
            self.counted[one.approval_id, word.by, word.said] += 1
            assert word.at < EXPIRY
            assert name_of(word)
            assert word.said in (
                "reject",
                "choose" if one.proposal.level == "yellow" else "approve",
            )
        else:
            assert answer.next is None
        if answer.outcome == "counted":
            assert one.people > 1

    @rule(now=st.sampled_from((EXPIRY - 1, EXPIRY)), really=st.integers(0, 3))
    def time_passes(self, now: float, really: int) -> None:
        if really == 0:
            ended = self.run(Waits(self.server, "code").expire(now))
            assert not ended or now >= EXPIRY

    @precondition(lambda self: self.asked)
    @rule(pick=st.integers(0, 9), really=st.integers(0, 3), word=words)
    def a_task_is_cancelled_while_somebody_speaks(self, pick: int, really: int, word: Word) -> None:
        if really:
            return
        task_id = list(self.asked)[-1 - pick % len(self.asked)]
        one = self.asked[task_id].approvals[0]

        async def both() -> None:
            control = Control(self.server, "code")
            await asyncio.gather(self._speak([(one, word)]), control.cancel(task_id, Who("ann")))
            got = await Waits(self.server, "code").decide(one.approval_id, says("bob", "reject"))
            assert got.outcome in ("refused", "already")

            # What ended undecided is in the log once, however often it is cancelled.
            rows = await entries_of(self.server, KEYS.decisions)
            rows = [row for row in rows if (row["id"], row["decision"]) == (task_id, "cancel")]
            ended = Counter(orjson.loads(row["p"])["approval_id"] for row in rows)
            found = await Waits(self.server, "code").find(one.approval_id)
            assert found is not None
            assert ended == Counter(
                a.approval_id for a in found[0].approvals if a.state == "cancelled"
            )

        self.run(both())

    @rule(really=st.integers(0, 9))
    def the_server_is_flushed(self, really: int) -> None:
        if really == 0:
            self.run(self.server.client.flushall())
            for wait in self.asked.values():
                assert self.run(self._unknown(wait))
            self.asked.clear()
            self.counted.clear()

    async def _unknown(self, wait: Wait) -> bool:
        try:
            await Waits(self.server, "code").decide(
                wait.approvals[0].approval_id, says("ann", "reject")
            )
        except NoSuchApproval:
            return True
        return False

    # -- what must hold ----------------------------------------------------------------------

    @invariant()
    def nothing_goes_to_work_that_was_not_agreed_on(self) -> None:
        if not hasattr(self, "server"):
            return
        for following in self.run(self._queued()):
            wait = self.asked[following.task.task_id]
            approvals = {a.approval_id: a for a in wait.approvals}
            fields = [change.field for change in following.changes]
            assert len(set(fields)) == len(fields) > 0
            for change in following.changes:
                if change.level == "green":
                    assert change in wait.greens
                    continue
                assert change.approval is not None
                one, said = approvals[change.approval], self.said[change.approval]
                assert change.level == one.proposal.level
                if change.level == "red":
                    agreed = {name_of(w) for w in said if w.said == "approve"}
                    assert len(agreed - {""}) >= one.people
                    assert change.after == one.proposal.after
                else:
                    assert any(w.said == "choose" and w.value == change.after for w in said)
                    assert change.after != NOW
                    assert one.editable or change.after in one.options
            constraints = {f"task.constraints.{name}" for name in following.task.constraints}
            assert constraints == {f for f in fields if f.startswith("task.constraints")}

    async def _queued(self) -> list[Assignment]:
        """Each revision in a lane; of every unit that waited there is at most one."""
        rows = [row for lane in KEYS.lanes for row in await entries_of(self.server, lane)]
        found = [Assignment.model_validate_json(row["p"]) for row in rows]
        assert len({(a.task.task_id, a.unit) for a in found}) == len(found)
        return [a for a in found if a.revision > 1]

    @invariant()
    def every_word_that_counted_is_in_the_log_once(self) -> None:
        if not hasattr(self, "server"):
            return
        rows = self.run(entries_of(self.server, KEYS.decisions))
        records = [orjson.loads(row["p"]) for row in rows if row["p"] != "{}"]
        logged = Counter((r["approval_id"], r["by"], r["said"]) for r in records)
        ours = ("expire", "cancel")
        assert Counter({k: n for k, n in logged.items() if k[2] not in ours}) == self.counted
        # What expires with others is a line each, of one call.
        sent = {
            (r["approval_id"].split("-")[0], r["said"] if r["said"] == "expire" else str(r))
            for r in records
            if r.get("next_unit")
        }
        assert max(Counter(task_id for task_id, _ in sent).values(), default=0) <= 1

    @invariant()
    def the_counters_are_exact(self) -> None:
        if not hasattr(self, "server"):
            return

        async def look() -> tuple[Any, list[Wait]]:
            counts = await SceneQueue(self.server, "code").counts()
            return counts, await Waits(self.server, "code").pending()

        counts, pending = self.run(look())
        assert counts.unaccounted == 0
        assert counts["with_people"] == len(pending)
        assert counts.undecided == 0  # their time is long over
        assert all(wait.pending for wait in pending)
        decided = counts["iterate"] + counts["rejected"]
        assert counts["reviewed"] >= decided + counts["with_people"]
        assert counts["units"] == len(self.asked) + counts["iterate"]


def _on(url: str, *, examples: int, number: int) -> None:
    machine = seed(number)(type("People", (People,), {"url": url}))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=25, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), print_blob=True,
            phases=(Phase.generate, Phase.shrink),
        ),
    )  # fmt: skip


def test_no_order_of_words_applies_what_was_not_agreed_on(valkey: EmbeddedServer) -> None:
    _on(valkey.url, examples=60, number=1)


def test_no_order_of_words_applies_what_was_not_agreed_on_redis_7(
    debian_redis: EmbeddedServer,
) -> None:
    _on(debian_redis.url, examples=20, number=2)
