"""People's words on real servers: each counts once, and what follows from the last happens once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.approvals import refusal_key
from common.queue.committer import Committer, Decision, Done
from common.queue.connection import Server
from common.queue.scene_queue import SceneQueue
from common.task import Assignment
from common.waits import NoSuchApproval
from common.words import person
from tests.common.queue.asked import BEFORE, both, counts, logged, queued, red, waits
from tests.common.waiting import EXPIRES, a_wait, approval, put, says, yellow
from tests.helpers import task, units


async def test_a_unit_waits_until_somebody_chose_and_then_goes_on(either: Server) -> None:
    await put(either, yellow(BEFORE, "a"))
    [wait] = await waits(either).pending()
    assert (wait, (await counts(either))["with_people"]) == (yellow(BEFORE, "a"), 1)
    assert await either.client.hget(waits(either).keys.ledger("t"), "u:r1-s0") == b"waiting"

    got = await waits(either).decide("a", says("ann", "choose", ["Read it again."]))
    assert (got.outcome, got.reason) == ("decided", "revision 2 is queued")
    [following] = await queued(either)
    assert (following, following.unit, following.hints) == (got.next, "r2-s0", ("Read it again.",))
    [change] = following.changes
    assert (change.level, change.by, change.approval) == ("yellow", ("ann",), "a")
    after = await counts(either)
    assert [after[n] for n in ("with_people", "units", "iterate", "rejected")] == [0, 2, 1, 0]
    assert (after.waiting, after.open_tasks, await waits(either).pending()) == (1, 1, [])
    [record] = await logged(either)
    assert {k: record[k] for k in ("by", "said", "to", "state", "then", "next_unit")} == {
        "by": "ann", "said": "choose", "to": ["Read it again."], "state": "chosen",
        "then": "next", "next_unit": "r2-s0",
    }  # fmt: skip


async def test_a_word_said_twice_changes_nothing_and_a_different_one_comes_too_late(
    either: Server,
) -> None:
    await put(either, yellow(BEFORE, "a"))
    await waits(either).decide("a", says("ann", "choose", ["Read it again."]))
    before = await counts(either)
    for by in ("ann", "bob"):
        got = await waits(either).decide("a", says(by, "choose", ["Read it again."], at=200.0))
        assert (got.outcome, got.next) == ("already", None)
    for word in (says("bob", "choose", ["Try harder."]), says("ann", "reject")):
        got = await waits(either).decide("a", word)
        assert got.outcome == "refused"
        assert "chosen by ann at 1970-01-01 00:01:40 UTC" in got.reason
    assert await counts(either) == before
    assert len(await logged(either)) == 1


async def test_red_needs_as_many_different_people_as_it_says(either: Server) -> None:
    await put(either, red(people=2))
    got = await waits(either).decide("red", says("Ann ", "approve"))
    assert (got.outcome, got.reason, got.next) == ("counted", "1 more person must approve", None)
    for by in (" ann", "ann@3fa1c2d4e5f6", "ANN@9b7711aa00cc", "Ａnn＠here"):
        assert (await waits(either).decide("red", says(by, "approve"))).outcome == "already"
    assert await queued(either) == []
    got = await waits(either).decide("red", says("bob", "approve"))
    assert got.outcome == "decided"
    [following] = await queued(either)
    assert following.task.constraints == {"memory_mb": 512}
    assert following.changes[0].by == ("Ann ", "bob")
    assert [(r["state"], r["then"], r["level"]) for r in await logged(either)] == [
        ("pending", "waits", "red"),
        ("approved", "next", "red"),
    ]


async def test_rejecting_one_proposal_leaves_the_others_to_be_decided(either: Server) -> None:
    await put(either, both())
    got = await waits(either).decide("red", says("ann", "reject", why="no"))
    assert (got.outcome, got.reason) == ("decided", "it still waits for a decision on yellow")
    got = await waits(either).decide("yellow", says("bob", "choose", []))  # keep it
    assert got.next is not None
    assert [change.field for change in got.next.changes] == ["task.sampling.temperature"]


async def test_a_unit_for_which_nothing_is_left_to_change_is_rejected(either: Server) -> None:
    await put(either, red())
    got = await waits(either).decide("red", says("ann", "reject"))
    assert (got.outcome, got.next) == ("decided", None)
    assert "rejected" in got.reason
    after = await counts(either)
    assert [after[n] for n in ("with_people", "rejected", "tasks_rejected")] == [0, 1, 1]
    assert after.open_tasks == 0
    assert await either.client.pttl(waits(either).keys.ledger("t")) > 0


async def test_what_was_decided_is_remembered_for_a_while_and_then_forgotten(
    either: Server,
) -> None:
    await put(either, red())
    keys = waits(either).keys
    remembered = (keys.wait("r1-s0|t"), keys.approval("red"))
    assert [await either.client.pttl(key) for key in remembered] == [-1, -1]
    await waits(either).decide("red", says("ann", "reject"))
    assert all([await either.client.pttl(key) > 0 for key in remembered])
    await either.client.delete(*remembered)
    assert await waits(either).find("red") is None
    with pytest.raises(NoSuchApproval, match="red"):
        await waits(either).decide("red", says("ann", "reject"))


async def test_words_that_cannot_count_say_why_and_change_nothing(server: Server) -> None:
    edited = approval(
        "text", "task.description", "Print 2.", before="Print 1.", level="yellow",
        options=("Print 2.", "Print 3."), editable=True,
    )  # fmt: skip
    await put(server, a_wait(BEFORE, edited, *both().approvals, expires_at=EXPIRES))
    for approval_id, word, why in (
        ("text", says("ann", "approve"), "choose or reject"),
        ("text", says("ann", "choose"), "needs a value"),
        ("text", says("ann", "choose", ""), "at least 1 character"),
        ("text", says("ann", "choose", 7), "string"),
        ("text", says("ann", "choose", "half a pair: \udcff"), "unicode"),
        ("yellow", says("ann", "choose", ["My own."]), "none of its options"),
        ("red", says("ann", "choose", 512), "approve or reject"),
        ("red", says("  ", "approve"), "without a name"),
        ("red", says(" @here", "approve"), "without a name"),
        ("red", says("ann", "approve", at=EXPIRES), "until 2096-10-02"),
    ):
        got = await waits(server).decide(approval_id, word)
        assert got.outcome == "refused", word
        assert why in got.reason, (word, got.reason)
    assert await logged(server) == []
    [wait] = await waits(server).pending()
    assert all(not a.words for a in wait.approvals)
    assert (await waits(server).decide("text", says("ann", "choose", "Print 4."))).reason


async def test_names_and_reasons_that_are_no_utf8_are_kept_as_far_as_they_can_be(
    server: Server,
) -> None:
    await put(server, red())
    got = await waits(server).decide("red", says("a\udcff", "approve", why="\udcff"))
    assert got.next is not None
    assert got.next.changes[0].by == ("a?",)


@pytest.mark.parametrize("people", [1, 5])
async def test_fifty_words_at_once_send_one_revision_to_work(either: Server, people: int) -> None:
    await put(either, red(people=people))
    got = await asyncio.gather(
        *(waits(either).decide("red", says(f"person-{n % 25}", "approve")) for n in range(50))
    )
    outcomes = [one.outcome for one in got]
    assert (outcomes.count("decided"), outcomes.count("counted")) == (1, people - 1)
    assert outcomes.count("already") == 50 - people
    assert len([one for one in got if one.next is not None]) == len(await queued(either)) == 1
    assert len(await logged(either)) == people
    assert (await counts(either))["units"] == 2


async def test_of_two_people_who_disagree_at_once_one_decides_and_the_other_is_told(
    either: Server,
) -> None:
    await put(either, *(yellow(Assignment(task=task(f"t{n}")), f"a{n}") for n in range(10)))
    for n in range(10):
        got = await asyncio.gather(
            waits(either).decide(f"a{n}", says("ann", "choose", ["Try harder."])),
            waits(either).decide(f"a{n}", says("bob", "reject")),
        )
        assert sorted(g.outcome for g in got) == ["decided", "refused"]
    after = await counts(either)
    assert after["iterate"] + after["rejected"] == len(await logged(either)) == 10


async def test_a_review_that_waits_is_settled_once(either: Server) -> None:
    q, reviews = SceneQueue(either, "code"), SceneQueue(either, "code", stage="review")
    await q.publish([units(task())])
    [lease] = await q.take(1)
    await Committer(q).commit(lease, Done(b"{}"))
    [event] = await reviews.take(1)
    asked = Decision("failed", "waiting", 1, b"{}", wait=red())
    await Committer(reviews).commit(event, asked)
    await waits(either).decide("red", says("ann", "approve"))
    await Committer(reviews).commit(event, asked)  # its reply got lost, say
    assert await waits(either).pending() == []
    assert (await counts(either))["reviewed"] == 1


async def test_a_call_whose_reply_got_lost_is_not_doubled_by_its_repetition(
    either: Server,
) -> None:
    await put(either, red(people=2))
    real = either.fcall

    async def twice(name: str, keys: Any, argv: Any) -> Any:
        await real(name, keys, argv)
        return await real(name, keys, argv)

    either.fcall = twice  # type: ignore[method-assign]
    for by, outcome in (("ann", "counted"), ("bob", "decided")):
        assert (await waits(either).decide("red", says(by, "approve"))).outcome == outcome
    either.fcall = real  # type: ignore[method-assign]
    assert len(await logged(either)) == 2
    assert len(await queued(either)) == 1


def test_only_a_decision_to_wait_says_what_it_waits_for() -> None:
    with pytest.raises(ValueError, match="waits"):
        Decision("failed", "waiting", 1, b"{}")
    with pytest.raises(ValueError, match="waits"):
        Decision("failed", "rejected", 1, b"{}", wait=red())


def test_people_are_told_apart_by_name_alone() -> None:
    one = ("root", "root@3fa1c2d4e5f6", " ROOT @9b7711aa00cc", "Ｒoot＠here")
    assert {person(by) for by in one} == {"root"}
    assert person("ann\t van  Dam") == person("Ann van dam") != person("annvandam")
    assert person("") == person(" ") == person("@here") == ""


def test_a_refused_change_is_known_by_its_value_however_that_was_written() -> None:
    key = refusal_key("task.x", {"a": 1, "b": [2.0, "é"]})
    assert key == refusal_key("task.x", {"b": [2, "é"], "a": 1.0})
    assert len(key) == 16 and set(key) <= set("0123456789abcdef")
    others = ({"a": True, "b": [2, "é"]}, {"a": 1.5, "b": [2, "é"]}, None, "half a pair: \udcff")
    assert len({key, *(refusal_key("task.x", other) for other in others)}) == 5
    assert refusal_key("task.y", None) != refusal_key("task.x", None)
