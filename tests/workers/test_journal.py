"""Answers that were paid for come back to the very request they answered, and to no other."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.llm.types import ModelUnavailable
from common.queue.committer import Cancelled, Committer, Dead, Done, Outcome, Retry
from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer
from common.queue.keys import Keys
from common.queue.scene_queue import SceneQueue
from common.store import Store
from common.task import Assignment, Sampling
from common.trajectory import Action, Provenance, StopReason, Trajectory, Usage
from tests.helpers import task, units
from tests.workers.answers import CHAT, KEY, TTL, UNIT, Model, ask, box, policy, reply
from tests.workers.episodes import World
from workers.episode import Episode
from workers.journal import MAX_ANSWER, MAX_UNIT, pack, unpack
from workers.policies.base import Turn
from workers.tools import FINISH, ToolOutput

# -- keying ---------------------------------------------------------------------------------------


async def test_the_same_request_is_answered_without_the_model(either: Server) -> None:
    model = Model(reply(throttled=7.0))
    first = await ask(policy(either, model))
    assert (first.replayed, first.throttled) == (False, 7.0)
    resumed = policy(either, model)
    assert resumed.agent.model_source == "api"
    again = await ask(resumed)
    assert model.asked == 1
    assert again.replayed
    assert again.throttled == 0, "nobody waited this time: no time is given back for it"
    for name in ("message", "actions", "thought", "usage", "parse", "objection", "sent", "source"):
        assert getattr(again, name) == getattr(first, name), name
    assert again.native_ids == ["c1"]
    assert resumed.agent.model_source == "standin", "who served the answer is known again"


@pytest.mark.parametrize(
    "other",
    [
        {"chat": [*CHAT[:1], {"role": "user", "content": "Print 1 ."}]},
        {"chat": [*CHAT, {"role": "user", "content": ""}]},
        {"chat": CHAT[::-1]},
        {"tools": ("run", "look")},
        {"sampling": {"temperature": 0.5}},
        {"sampling": {"seed": 1}},
        {"sampling": {"model": "m2"}},
        {"provider": "another"},
        {"model": "m2"},
        {"tool_mode": "schema"},
        {"parallel_tools": True},
        {"extra_body": {"thinking": {"type": "disabled"}}},
    ],
    ids=str,
)
async def test_any_other_request_is_asked(server: Server, other: dict[str, Any]) -> None:
    await ask(policy(server, Model(reply())))
    chat = other.pop("chat", CHAT)
    tools = box(*other.pop("tools", ("run",)))
    sampling = Sampling.model_validate(other.pop("sampling", {}))
    model = Model(reply(), **other)
    turn = await ask(policy(server, model, sampling), chat, tools)
    assert (model.asked, turn.replayed) == (1, False)


async def test_what_does_not_shape_the_request_does_not_matter(server: Server) -> None:
    await ask(policy(server, Model(reply())))
    model = Model(reply(), price=(1.0, 2.0), source="standin")
    assert (await ask(policy(server, model))).replayed


async def test_samples_and_revisions_of_a_task_share_no_answers() -> None:
    keys = Keys("code")
    names = {keys.journal(t, u) for t in ("t", "t:r1-s0") for u in ("r1-s0", "r1-s1", "r2-s0")}
    assert len(names) == 6
    assert all(name.startswith(keys.prefix) for name in names)


# -- what is kept ---------------------------------------------------------------------------------

TEXT = st.text(max_size=40)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
TURNS = st.builds(
    Turn,
    message=st.dictionaries(TEXT, JSON, max_size=4),
    actions=st.lists(
        st.builds(
            Action, tool=TEXT, arguments=st.dictionaries(TEXT, JSON, max_size=3), call_id=TEXT
        ),
        max_size=3,
    ).map(tuple),
    objection=st.none() | TEXT,
    thought=TEXT,
    usage=st.builds(Usage, calls=st.integers(0, 1 << 40), cost_usd=st.none() | st.floats(0, 1)),
    parse=st.sampled_from(["native", "schema", "fenced", "fallback"]),
    throttled=st.floats(0, 1e6),
    sent=st.lists(st.dictionaries(TEXT, JSON, max_size=2), max_size=2).map(tuple),
    source=st.sampled_from(["api", "embedded", "standin"]),
)  # fmt: skip


@given(TURNS)
def test_an_answer_is_restored_exactly(turn: Turn) -> None:
    row = pack(turn)
    assert row is not None
    assert repr(unpack(row)) == repr(turn)


def test_an_answer_that_json_cannot_hold_is_not_kept() -> None:
    assert pack(Turn(message={"content": "half a pair: \ud83d"}, actions=())) is None


def test_a_big_answer_is_kept_compressed() -> None:
    turn = Turn(message={"content": "The same again. " * 10_000}, actions=())
    row = pack(turn)
    assert row is not None
    assert len(row) < 5_000
    assert unpack(row) == turn


async def test_too_big_an_answer_is_asked_again(server: Server) -> None:
    for size, kept in ((MAX_ANSWER - 2000, True), (MAX_ANSWER, False)):
        await server.client.delete(KEY)
        big = Model(reply(thought="x" * size))
        await ask(policy(server, big))
        assert (await ask(policy(server, big))).replayed is kept
        assert big.asked == (1 if kept else 2)


async def test_the_answers_of_a_unit_have_a_bound(server: Server) -> None:
    rng = random.Random(3)
    model = Model(*(reply(thought=rng.randbytes(100_000).hex()) for _ in range(50)))
    agent = policy(server, model)
    for n in range(50):
        await ask(agent, [*CHAT, {"role": "user", "content": str(n)}])
    rows = await server.client.hgetall(KEY)
    assert MAX_UNIT * 0.9 < sum(map(len, rows.values())) <= MAX_UNIT
    # An attempt that resumes counts what is there already.
    await ask(policy(server, model), [*CHAT, {"role": "user", "content": "50"}])
    assert await server.client.hlen(KEY) == len(rows)


async def test_answers_expire_with_the_ledger(either: Server) -> None:
    await ask(policy(either, Model(reply())))
    left = await either.client.pttl(KEY)
    assert 0 < left <= TTL * 1000
    await either.client.pexpire(KEY, 1000)
    await ask(policy(either, Model(reply())), [*CHAT, *CHAT])
    assert await either.client.pttl(KEY) > 1000, "each answer keeps all of them alive"


@pytest.mark.parametrize(
    ("outcome", "kept"),
    [
        (Done(b"{}"), False),
        (Cancelled(), False),
        (Dead("invalid_task", "no"), False),
        (Dead("budget_exceeded", "all spent"), True),
        (Retry(0.0, "sandbox_lost: gone"), True),
        (Retry(0.0, "rate_limited: later", counted=False), True),
    ],
    ids=str,
)
async def test_answers_last_as_long_as_the_unit_can_be_run_again(
    either: Server, outcome: Outcome, kept: bool
) -> None:
    queue = SceneQueue(either, "code", consumer="w")
    await queue.publish([units(task())])
    [lease] = await queue.take(1)
    assert (lease.task_id, lease.unit) == ("t", UNIT)
    model = Model(reply())
    await ask(policy(either, model))
    committer = Committer(queue)
    await committer.commit(lease, outcome)
    await committer.close()
    assert (await ask(policy(either, model))).replayed is kept


async def test_who_has_lost_the_unit_leaves_nothing_behind(either: Server) -> None:
    model = Model(reply())
    late = policy(either, model)
    await ask(late)
    # Another consumer commits the unit, and with it forgets its answers.
    await either.client.hset(Keys("code").ledger("t"), f"u:{UNIT}", "review")
    await either.client.delete(KEY)
    assert (await ask(late, [*CHAT, *CHAT])).actions
    assert await either.client.exists(KEY) == 0


async def test_a_unit_without_answers_costs_one_look(server: Server) -> None:
    before = (await server.client.info("commandstats")).get("cmdstat_hgetall", {"calls": 0})
    agent = policy(server, Model(reply()))
    for n in range(5):
        await ask(agent, [*CHAT, {"role": "user", "content": str(n)}])
    after = (await server.client.info("commandstats"))["cmdstat_hgetall"]
    assert after["calls"] - before["calls"] == 1


# -- damage and outages ---------------------------------------------------------------------------


def sound(raw: bytes, how: Callable[[bytes], bytes] | None = None) -> bytes:
    """A row whose checksum is right, though what is in it is no answer."""
    return (b"z" if how else b"j") + zlib.crc32(raw).to_bytes(4) + (how(raw) if how else raw)


def _flipped(row: bytes) -> bytes:
    return row[: len(row) // 2] + bytes([row[len(row) // 2] ^ 1]) + row[len(row) // 2 + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda _: b"garbage",
        lambda row: row[:-7],
        lambda row: row + b"x",
        _flipped,
        lambda _: sound(b'{"message": 1}'),
        lambda _: sound(b"[]"),
        lambda _: sound(b"x" * (32 << 20), zlib.compress),
        lambda _: sound(b"x" * 9, lambda raw: b"not zlib"),
    ],
    ids=["empty", "garbage", "cut", "longer", "a bit", "a shape", "a list", "a bomb", "no zlib"],
)
async def test_a_damaged_answer_is_asked_again_and_replaced(
    server: Server, damage: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Model(reply(thought="a secret of the task"))
    await ask(policy(server, model))
    [(field, row)] = (await server.client.hgetall(KEY)).items()
    await server.client.hset(KEY, field, damage(row))
    assert not (await ask(policy(server, model))).replayed
    assert model.asked == 2
    assert (await ask(policy(server, model))).replayed
    assert "a secret of the task" not in capfd.readouterr().err


async def test_a_key_of_another_kind_costs_the_journal_and_not_the_episode(
    server: Server,
) -> None:
    await server.client.set(KEY, "not a hash")
    model = Model(reply())
    agent = policy(server, model)
    for n in range(2):
        turn = await ask(agent, [*CHAT, {"role": "user", "content": str(n)}])
        assert turn.actions
    assert await server.client.get(KEY) == b"not a hash"


async def test_a_full_server_keeps_the_answers_of_work_under_way(tmp_path: Path) -> None:
    valkey = EmbeddedServer(tmp_path)
    valkey.start()
    server = Server(valkey.url, patience=20)
    model = Model(reply())
    try:
        await ask(policy(server, model), [])  # loads the library
        await server.client.config_set("maxmemory", 1)
        await ask(policy(server, model))
        assert (await ask(policy(server, model))).replayed
    finally:
        await server.close()
        valkey.stop()


async def test_an_answer_waits_for_an_absent_server_and_not_on_the_agents_time(
    tmp_path: Path,
) -> None:
    valkey = EmbeddedServer(tmp_path)
    valkey.start()
    server = Server(valkey.url, patience=30)
    model = Model(reply())
    agent = policy(server, model)
    try:
        await ask(agent)
        valkey.kill()
        asked = asyncio.create_task(ask(agent, [*CHAT, *CHAT]))
        done, _ = await asyncio.wait([asked], timeout=0.5)
        assert not done, "acted upon before it was kept"
        await asyncio.to_thread(valkey.start)
        turn = await asyncio.wait_for(asked, 30)
        assert turn.waited >= 0.5
        assert (await ask(policy(server, model), [*CHAT, *CHAT])).replayed
    finally:
        await server.close()
        valkey.stop()


# -- whole episodes -------------------------------------------------------------------------------


async def attempt(
    server: Server, model: Model, world: World, folder: Path, **fields: Any
) -> Trajectory:
    episode = Episode(
        Assignment(task=task(**fields)), "a1", world, policy(server, model), Store(folder),  # type: ignore[arg-type]
        Provenance(fleet_version="0", worker="w", host="h"),
    )  # fmt: skip
    return await episode.run()


FOUR = (
    reply(arguments={"code": "1"}),
    reply("no_such_tool"),  # malformed: paid for as well
    reply(arguments={"code": "2"}),
    reply(FINISH, arguments={"answer": "x"}),
)


async def test_an_episode_run_again_asks_nothing_and_executes_everything(
    server: Server, tmp_path: Path
) -> None:
    model = Model(*FOUR)
    first = await attempt(server, model, World(), tmp_path)
    assert (first.replayed_steps, first.replayed_usage) == (0, Usage())
    world = World()
    again = await attempt(server, model, world, tmp_path)
    assert model.asked == 4
    assert [arguments for _, arguments, _ in world.called] == [{"code": "1"}, {"code": "2"}]
    assert again.messages == first.messages
    assert [s.replayed for s in again.steps] == [True] * 3
    assert {s.model_source for s in again.steps} == {"standin"}
    assert (again.replayed_steps, again.malformed_answers) == (3, 1)
    assert again.usage == again.replayed_usage == first.usage
    assert again.usage.calls == 4
    assert (again.stop_reason, again.final_result) == (StopReason.FINISH, "x")
    read = Trajectory.model_validate_json(again.model_dump_json(by_alias=True))
    assert read == again


async def test_from_the_first_result_that_differs_the_model_is_asked(
    server: Server, tmp_path: Path
) -> None:
    await attempt(server, Model(*FOUR), World([ToolOutput("now 12:01"), ToolOutput("b")]), tmp_path)
    model = Model(*FOUR[1:])
    again = await attempt(
        server, model, World([ToolOutput("now 12:02"), ToolOutput("b")]), tmp_path
    )
    assert model.asked == 3
    assert [s.replayed for s in again.steps] == [True, False, False]
    assert again.replayed_usage == FOUR[0].usage
    assert again.usage.calls == 4
    assert "now 12:02" in str(again.messages)
    assert "now 12:01" not in str(again.messages)


async def test_a_fenced_model_knows_after_a_replay_what_it_said_before(
    server: Server, tmp_path: Path
) -> None:
    # A program repeated unchanged after its error ends the episode. Here the first one is
    # replayed, so this process never asked for it.
    said = reply(
        "run_python", arguments={"code": "1/0"}, parse="fenced",
        message={"role": "assistant", "content": "```python\n1/0\n```"},
    )  # fmt: skip

    def world() -> World:
        made = World([ToolOutput("boom", success=False)] * 2)
        made.tools = box("run_python")
        return made

    model = Model(said, ModelUnavailable("gone"), said, tool_mode="fenced")
    first = await attempt(server, model, world(), tmp_path)
    assert (len(first.steps), first.stop_reason, model.asked) == (1, StopReason.FAILURE, 2)
    again = await attempt(server, model, world(), tmp_path)
    assert [s.replayed for s in again.steps] == [True, False]
    assert (again.stop_reason, again.final_result) == (StopReason.FINISH, "boom")
    assert model.asked == 3
