"""Units that wait for people and come to an end: time is up, cancelled, another life."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from common.approvals import Wait, refusal_key
from common.queue.committer import Committer, Decision, Done
from common.queue.connection import Server
from common.queue.control import Control, Who
from common.queue.scene_queue import SceneQueue
from common.task import Assignment
from common.waits import NoSuchApproval
from tests.common.queue.asked import (
    BEFORE,
    MEMORY,
    a_red,
    both,
    counts,
    logged,
    queued,
    red,
    state_of,
    waits,
)
from tests.common.waiting import EXPIRES, a_wait, approval, green, put, says, yellow
from tests.helpers import entries_of, task, units

ME = Who("ann@here", "too dear")


async def test_what_nobody_decided_in_time_goes_on_without_it(either: Server) -> None:
    left = both(expires_at=1000.0)
    alone = a_wait(
        Assignment(task=task("alone")), approval("alone", MEMORY, 512), expires_at=1000.5
    )
    await put(either, left, alone)
    assert [w.task_id for w in await waits(either).pending()] == ["t", "alone"]
    assert await waits(either).count() == 2
    await waits(either).decide("yellow", says("ann", "choose", ["Try harder."]))
    assert await waits(either).expire(999.0) == []
    assert [w.task_id for w in await waits(either).expire(1000.1)] == ["t"]
    assert [w.task_id for w in await waits(either).expire(2000.0)] == ["alone"]
    assert await waits(either).expire(2000.0) == []

    [following] = await queued(either)
    assert [c.field for c in following.changes] == ["task.sampling.temperature", "hints"]
    after = await counts(either)
    assert [after[n] for n in ("with_people", "iterate", "rejected", "units")] == [0, 1, 1, 3]
    assert [(r["by"], r["state"], r["then"]) for r in await logged(either)] == [
        ("ann", "chosen", "waits"), ("expiry", "expired", "next"),
        ("expiry", "expired", "rejected"),
    ]  # fmt: skip
    for word in (says("ann", "approve"), says("ann", "reject")):
        assert (await waits(either).decide("red", word)).outcome == "refused"


async def test_what_is_over_waits_for_nobody_though_nobody_has_ended_it(either: Server) -> None:
    await put(either, a_red(0, expires_at=1000.0), a_red(1))
    found = await counts(either)
    assert (found["with_people"], found.undecided) == (2, 1)


async def test_what_another_release_wrote_costs_no_other_its_turn(either: Server) -> None:
    await put(either, *(a_red(n, expires_at=1000.0) for n in range(3)))
    key = waits(either).keys.wait("r1-s0|t0")
    newer = orjson.loads(await either.client.hget(key, "wait")) | {"asked_by": "newer"}
    await either.client.hset(key, "wait", orjson.dumps(newer))
    with capture_logs() as told:
        assert [w.task_id for w in await waits(either).pending()] == ["t1", "t2"]
    [line] = told
    assert (line["event"], line["task_id"]) == ("wait.unreadable", "t0")
    assert line["error"] == "asked_by: unknown field"
    with pytest.raises(NoSuchApproval, match=r"a0 was written by another release.*asked_by: unkn"):
        await waits(either).decide("a0", says("ann", "approve"))
    assert [w.task_id for w in await waits(either).expire(2000.0)] == ["t1", "t2"]
    assert await waits(either).count() == 1

    assert (await Control(either, "code").cancel("t0", ME)).outcome == "cancelled"
    assert [r["approval_id"] for r in await logged(either) if r["said"] == "cancel"] == ["a0"]
    assert await waits(either).count() == 0


async def test_a_wait_that_others_keep_changing_costs_no_other_its_turn(
    either: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(either, *(a_red(n, expires_at=1000.0 + n) for n in range(2)))
    busy, put_in = waits(either), waits(either)._put

    async def contended(kept: Any, wait: Wait, *then: Any) -> bool:
        return wait.task_id != "t0" and await put_in(kept, wait, *then)

    monkeypatch.setattr(busy, "_put", contended)
    monkeypatch.setattr("common.waits._TRIES", 3)
    assert [w.task_id for w in await busy.expire(2000.0)] == ["t1"]
    assert [w.task_id for w in await waits(either).expire(2000.0)] == ["t0"]


@pytest.mark.parametrize("said", ["rejected", "kept", "expired"])
async def test_what_nobody_wanted_is_not_asked_again(either: Server, said: str) -> None:
    before = BEFORE.model_copy(update={"refused": ("earlier",)})
    [hints] = yellow(before, "yellow").approvals
    red = approval("red", MEMORY, 512)
    await put(either, a_wait(before, hints, red, greens=(green(before),), expires_at=1000.0))
    if said == "kept":
        await waits(either).decide("yellow", says("ann", "choose", []))
    elif said == "rejected":
        await waits(either).decide("yellow", says("ann", "reject"))
    if said == "expired":
        await waits(either).expire(2000.0)
    else:
        await waits(either).decide("red", says("ann", "approve"))
    [following] = await queued(either)
    unwanted = [("hints", ["Try harder."]), (MEMORY, 512)][: 2 if said == "expired" else 1]
    assert following.refused == ("earlier", *(refusal_key(*one) for one in unwanted))


async def test_what_was_passed_over_is_not_asked_again(either: Server) -> None:
    wording = approval(
        "text", "task.description", "Print 2.", before="Print 1.", level="yellow",
        options=("Print 2.", "Print 3."), editable=True,
    )  # fmt: skip
    red = approval("red", MEMORY, 512)
    await put(either, a_wait(BEFORE, *yellow(BEFORE, "hints").approvals, wording, red))
    await waits(either).decide("hints", says("ann", "choose", ["Read it again."]))
    await waits(either).decide("text", says("ann", "choose", "My own words."))
    await waits(either).decide("red", says("ann", "approve"))
    [following] = await queued(either)
    assert following.refused == (
        refusal_key("hints", ["Try harder."]), refusal_key("task.description", "Print 2."),
    )  # fmt: skip


async def test_a_word_that_races_the_expiry_counts_or_is_refused(either: Server) -> None:
    await put(either, *(a_red(n, expires_at=1000.0 + n) for n in range(10)))
    for n in range(10):
        got, ended = await asyncio.gather(
            waits(either).decide(f"a{n}", says("ann", "approve", at=999.9)),
            waits(either).expire(1000.0 + n),
        )
        assert got.outcome == ("refused" if ended else "decided")
        assert await state_of(either, f"a{n}") == ("expired" if ended else "approved")
    after = await counts(either)
    assert after["iterate"] + after["rejected"] == 10
    assert after["iterate"] == len(await queued(either))


async def test_cancelling_a_task_ends_what_waits_and_tells_those_who_speak_later(
    either: Server,
) -> None:
    await put(either, both())
    await waits(either).decide("yellow", says("ann", "reject"))
    got = await Control(either, "code").cancel("t", ME)
    assert (got.outcome, got.units) == ("cancelled", 1)
    word, ended = await logged(either)
    assert (word["said"], word["level"]) == ("reject", "yellow")
    assert 1_600_000_000 < ended.pop("at") < EXPIRES
    assert ended == {
        "decision": "cancel", "said": "cancel", "by": "ann@here", "why": "too dear",
        "state": "cancelled", "approval_id": "red", "attempt_id": "r1-s0-1-0-d1-a",
        "field": MEMORY, "level": "red",
    }  # fmt: skip
    after = await counts(either)
    assert [after[n] for n in ("with_people", "cancelled", "tasks_cancelled")] == [0, 0, 1]
    assert await waits(either).pending() == []
    late = await waits(either).decide("red", says("bob", "approve"))
    assert late.outcome == "refused"
    assert late.reason.startswith("the task was cancelled by ann@here at 20")
    assert late.reason.endswith(": too dear")
    assert [await state_of(either, a) for a in ("red", "yellow")] == ["cancelled", "rejected"]
    assert await waits(either).expire(EXPIRES) == []


async def test_a_word_that_races_a_cancellation_goes_on_or_is_refused(either: Server) -> None:
    await put(either, *(a_red(n) for n in range(10)))
    for n in range(10):
        got, stopped = await asyncio.gather(
            waits(either).decide(f"a{n}", says("bob", "approve")),
            Control(either, "code").cancel(f"t{n}", ME),
        )
        assert got.outcome in ("decided", "refused")
        assert stopped.outcome == "cancelled"  # its next revision too, if there was one
        assert await queued(either) == []
    after = await counts(either)
    assert (after["tasks_cancelled"], after["with_people"], after.open_tasks) == (10, 0, 0)


@pytest.mark.parametrize("decision", ["waiting", "iterate", "rejected"])
async def test_a_review_of_a_cancelled_task_goes_on_with_nothing_and_says_so(
    either: Server, decision: Any
) -> None:
    q, reviews = SceneQueue(either, "code"), SceneQueue(either, "code", stage="review")
    await q.publish([units(task())])
    [lease] = await q.take(1)
    await Control(either, "code").cancel("t", ME)
    await Committer(q).commit(lease, Done(b"{}"))
    [event] = await reviews.take(1)
    wait = red() if decision == "waiting" else None
    following = BEFORE.model_copy(update={"revision": 2}) if decision == "iterate" else None
    await Committer(reviews).commit(event, Decision("failed", decision, 1, b"{}", following, wait))
    after, end = await counts(either), "rejected" if decision == "rejected" else "cancelled"
    assert (after["with_people"], after[f"tasks_{end}"], after.open_tasks) == (0, 1, 0)
    assert await waits(either).find("red") is None
    [row] = await entries_of(either, waits(either).keys.decisions)
    assert (row["decision"], await queued(either)) == (end, [])


async def test_a_flushed_server_knows_of_no_approval(either: Server) -> None:
    await put(either, red())
    await either.client.flushall()
    assert await waits(either).pending() == await waits(either).expire(EXPIRES) == []
    with pytest.raises(NoSuchApproval):
        await waits(either).decide("red", says("ann", "approve"))


async def test_a_task_whose_ledger_is_gone_does_not_go_on(either: Server) -> None:
    await put(either, red())
    await either.client.delete(waits(either).keys.ledger("t"))
    got = await waits(either).decide("red", says("ann", "approve"))
    assert (got.outcome, got.next) == ("refused", None)
    assert "not in the queue" in got.reason
    found = await SceneQueue(either, "code").counts()
    assert (found["with_people"], found.waiting, await waits(either).pending()) == (0, 0, [])


async def test_words_are_for_the_life_of_the_task_they_were_asked_in(either: Server) -> None:
    await put(either, red())
    await waits(either).decide("red", says("ann", "reject"))
    await either.client.delete(waits(either).keys.ledger("t"))  # as if its time had run out
    await put(either, yellow(BEFORE, "new"))
    with pytest.raises(NoSuchApproval):
        await waits(either).decide("red", says("bob", "approve"))
    assert await state_of(either, "new") == "pending"


async def test_a_wait_of_a_task_that_lives_again_takes_the_place_of_the_former(
    either: Server,
) -> None:
    keys = waits(either).keys
    await put(either, red())
    version = await either.client.hget(keys.wait("r1-s0|t"), "v")
    await either.client.delete(keys.ledger("t"))
    await put(either, a_wait(BEFORE, approval("again", MEMORY, 512)))
    found = await SceneQueue(either, "code").counts()
    assert (found["with_people"], len(await waits(either).pending())) == (1, 1)
    assert await either.client.pttl(keys.approval("red")) > 0
    argv = (1, "t", "r1-s0", version, "token", "{}", "end", "rejected", "", "")
    assert await either.fcall("decide", (keys.prefix, *keys.lanes), argv) == [0]

    far = 1 << 50  # a server that took over may have a clock that is behind
    await either.client.hset(keys.wait("r1-s0|t"), "v", far)
    await either.client.delete(keys.ledger("t"))
    await put(either, a_wait(BEFORE, approval("third", MEMORY, 512)))
    assert int(await either.client.hget(keys.wait("r1-s0|t"), "v")) > far + 1  # not the ended one's
