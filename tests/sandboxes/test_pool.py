"""Sandboxes kept ready: handed out once, alive, the episode's own; and never in anybody's way."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

import pytest
from structlog.testing import capture_logs

from tests.helpers import eventually
from workers.sandboxes import pool as pool_module
from workers.sandboxes.agent_sandbox import AgentSandbox
from workers.sandboxes.nsjail import cgroups
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.nsjail.records import Record
from workers.sandboxes.pool import Pool, shares
from workers.sandboxes.processes import ProcessMark
from workers.sandboxes.protocol import (
    ProbeReport,
    Sandbox,
    SandboxProvider,
    SandboxQuota,
    SandboxStartError,
    SandboxUnavailable,
    SandboxUnsupported,
)
from workers.sandboxes.spec import Limits, SandboxSpec

SPEC = SandboxSpec(labels={"task": "t"})


class Watched:
    """Starts real jails, and notes what was asked of it; may be told to fail."""

    def __init__(self, provider: SandboxProvider) -> None:
        self.backend, self.capabilities = provider.backend, provider.capabilities
        self.provider = provider
        self.specs: list[SandboxSpec] = []
        self.failed = 0
        self.error: Exception | None = None
        self.now = self.most = 0

    async def start(self, spec: SandboxSpec) -> Sandbox:
        if self.error:
            self.failed += 1
            raise self.error
        self.specs.append(spec)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self.provider.start(spec)
        finally:
            self.now -= 1

    async def probe(self) -> ProbeReport:
        return await self.provider.probe()

    async def reap(self) -> int:
        return await self.provider.reap()

    async def close(self) -> None:
        await self.provider.close()


@pytest.fixture
async def jails(records: Path) -> AsyncIterator[Watched]:
    watched = Watched(NsjailProvider(records=records, use_cgroups=cgroups.find() is not None))
    yield watched
    await watched.close()
    assert list(records.iterdir()) == [], "a jail was left behind"


class Gauge(list[int]):
    """How many were ready, whenever it was told."""

    async def shows(self, count: int) -> None:
        await eventually(lambda: bool(self) and self[-1] == count, f"{count} ready")


@pytest.fixture
def ready() -> Gauge:
    return Gauge()


@pytest.fixture
async def pool(jails: Watched, ready: Gauge) -> AsyncIterator[Pool]:
    pool = Pool(jails, 2, ready.append)
    yield pool
    await pool.close()
    assert ready[-1] == 0


def noted(records: Path) -> list[Record]:
    return [Record.model_validate_json(file.read_bytes()) for file in records.glob("*.json")]


async def warm(pool: Pool, ready: Gauge, spec: SandboxSpec = SPEC) -> None:
    """Let an episode come and go, and what it leaves behind get ready."""
    await (await pool.start(spec)).close()
    await ready.shows(2)


# -- one sandbox, one episode ---------------------------------------------------------------------


async def test_no_sandbox_is_handed_out_twice(pool: Pool, ready: Gauge) -> None:
    seen = set()
    for _ in range(8):
        async with await pool.start(SPEC) as sandbox:
            assert sandbox.id not in seen
            seen.add(sandbox.id)
            assert await sandbox.list_dir() == []
            await sandbox.write_file("mine", b"")
        await ready.shows(2)
    assert len(seen) == 8


async def test_a_ready_sandbox_becomes_the_episodes_own(
    pool: Pool, ready: Gauge, jails: Watched, records: Path
) -> None:
    await warm(pool, ready)
    assert [record.labels for record in noted(records)] == [{}, {}]
    before = len(jails.specs)
    spec = SandboxSpec(
        limits=Limits(ttl=77), labels={"task": "t", "attempt": "a"}, files={"in/x": b"y"}
    )
    sandbox = await pool.start(spec)
    assert len(jails.specs) == before, "it was there already"
    assert "77 s" in str(sandbox.enforced["ttl"])
    assert await sandbox.read_file("in/x") == b"y"
    assert spec.labels in [record.labels for record in noted(records)]


async def test_a_checkout_is_far_quicker_than_a_start(
    pool: Pool, ready: Gauge, jails: Watched
) -> None:
    seconds: dict[SandboxProvider, list[float]] = {pool: [], jails: []}
    for _ in range(7):
        await warm(pool, ready)
        for provider, taken in seconds.items():
            began = time.monotonic()
            sandbox = await provider.start(SPEC)
            taken.append(time.monotonic() - began)
            await sandbox.close()
            await ready.shows(2)
    assert median(seconds[pool]) < median(seconds[jails]) / 3


async def test_the_life_of_a_ready_sandbox_counts_from_its_checkout(
    pool: Pool, ready: Gauge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "TTL", 30.0)
    await warm(pool, ready)
    short = await pool.start(SandboxSpec(limits=Limits(ttl=0.3)))
    await ready.shows(2)
    long = await pool.start(SandboxSpec(limits=Limits(ttl=300)))

    async def ended() -> bool:
        return not await short.is_alive()

    await eventually(ended, "the end of a life of 0.3 s", within=5)
    assert await long.is_alive()


async def test_specs_of_different_limits_never_mix(
    pool: Pool, ready: Gauge, jails: Watched
) -> None:
    for _ in range(3):
        for memory in (64, 96, 128):
            spec = SandboxSpec(limits=Limits(memory_mb=memory), env={"MEMORY": str(memory)})
            async with await pool.start(spec) as sandbox:
                assert f"{memory} MiB" in str(sandbox.enforced["memory"])
                assert (await sandbox.exec("echo $MEMORY")).stdout == f"{memory}\n"
            await ready.shows(2)
    assert max(ready) <= 2, "all kinds together"


async def test_a_file_that_cannot_be_is_refused_as_without_a_pool(
    pool: Pool, ready: Gauge, records: Path
) -> None:
    await warm(pool, ready)
    for _ in range(2):
        with pytest.raises(SandboxUnsupported, match="/usr/x"):
            await pool.start(SandboxSpec(files={"/usr/x": b""}))
    await eventually(lambda: len(noted(records)) == ready[-1], "only ready ones are left")


# -- dead ones, bursts, cancellation --------------------------------------------------------------


async def test_dead_ones_are_dropped_and_replaced(pool: Pool, ready: Gauge, records: Path) -> None:
    await warm(pool, ready)
    jails_of_the_dead = [record.jail for record in noted(records) if record.jail]
    for jail in jails_of_the_dead:
        jail.send(signal.SIGKILL)
    await eventually(lambda: not any(map(ProcessMark.alive, jails_of_the_dead)), "their death")
    async with await pool.start(SPEC) as sandbox:
        assert (await sandbox.exec("echo well")).stdout == "well\n"
    await ready.shows(2)
    async with await pool.start(SPEC) as sandbox:
        assert await sandbox.is_alive()


async def test_one_that_died_of_old_age_is_dropped_without_a_trace(
    pool: Pool, ready: Gauge, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "TTL", 0.3)
    await warm(pool, ready)
    await eventually(lambda: noted(records) == [], "the end of both")
    monkeypatch.setattr(pool_module, "TTL", 30.0)
    async with await pool.start(SPEC) as sandbox:
        assert await sandbox.is_alive()
        await ready.shows(2)
        assert len(noted(records)) == 3


async def test_one_that_hangs_holds_nobody_up(
    pool: Pool, ready: Gauge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "CHECKOUT_PATIENCE", 0.2)
    await warm(pool, ready)

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(AgentSandbox, "keep_alive", hang)
    began = time.monotonic()
    async with await pool.start(SPEC) as sandbox:
        assert await sandbox.is_alive()
    assert time.monotonic() - began < 5


async def test_a_burst_larger_than_the_pool_is_served(pool: Pool, ready: Gauge) -> None:
    await warm(pool, ready)
    sandboxes = await asyncio.gather(*(pool.start(SPEC) for _ in range(9)))
    assert len({sandbox.id for sandbox in sandboxes}) == 9
    assert all([await sandbox.is_alive() for sandbox in sandboxes])
    await asyncio.gather(*(sandbox.close() for sandbox in sandboxes))


async def test_a_cancelled_checkout_leaves_nothing_behind(
    pool: Pool, ready: Gauge, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(pool, ready)
    asked = asyncio.Event()

    async def hang(*_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(AgentSandbox, "keep_alive", hang)
        starting = asyncio.create_task(pool.start(SPEC))
        await asked.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    await eventually(lambda: len(noted(records)) == ready[-1], "only ready ones are left")
    async with await pool.start(SPEC) as sandbox:
        assert await sandbox.is_alive()


async def test_closing_leaves_nothing_and_does_not_wait_for_a_start(
    jails: Watched, ready: Gauge, records: Path
) -> None:
    for starts in (1, 3):
        pool = Pool(jails, 3, ready.append)
        for _ in range(starts):
            await pool.start(SPEC)  # its owner is gone without closing it
        if starts > 1:
            await eventually(lambda: jails.now == 1, "a start in the background")
        began = time.monotonic()
        await pool.close()
        assert time.monotonic() - began < 5
        assert list(records.iterdir()) == []
        assert ready[-1] == 0


async def test_a_start_under_way_when_the_pool_closes_is_ended(
    jails: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, gate = jails.provider.start, asyncio.Event()

    async def slow(spec: SandboxSpec) -> Sandbox:
        await gate.wait()
        return await start(spec)

    monkeypatch.setattr(jails.provider, "start", slow)
    starting = asyncio.create_task((pool := Pool(jails, 0)).start(SPEC))
    await eventually(lambda: jails.now == 1, "it is under way")
    await pool.close()
    gate.set()
    with pytest.raises(SandboxUnavailable, match="this worker ends"):
        await starting  # and nothing is left: see `jails`


# -- what is kept ready ---------------------------------------------------------------------------


async def test_one_at_a_time_is_started_in_the_background(jails: Watched, ready: Gauge) -> None:
    pool = Pool(jails, 5, ready.append)
    await (await pool.start(SPEC)).close()
    await ready.shows(5)
    assert jails.most == 1
    await pool.close()


async def test_nothing_is_started_before_an_episode_asked(pool: Pool, jails: Watched) -> None:
    assert (await pool.probe()).backend == pool.backend == "nsjail"
    assert await pool.reap() == 0
    await asyncio.sleep(0)
    assert jails.specs == []
    await (await pool.start(SPEC)).close()


async def test_a_kind_nobody_asks_for_any_more_is_given_up(
    pool: Pool, ready: Gauge, records: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(pool, ready)
    monkeypatch.setattr(pool_module, "UNUSED", 0.2)
    pool._wake.set()  # the keeper looks once a minute by itself
    await ready.shows(0)
    await eventually(lambda: noted(records) == [], "their end")


async def test_a_ready_sandbox_is_replaced_before_it_is_old(
    pool: Pool, ready: Gauge, jails: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    await warm(pool, ready)
    before = len(jails.specs)
    with monkeypatch.context() as patched:
        patched.setattr(pool_module, "MAX_AGE", 0.0)
        pool._wake.set()
        await eventually(lambda: len(jails.specs) > before, "a younger one")
    await ready.shows(2)


@pytest.mark.parametrize(
    ("asked", "size", "ready", "places"),
    [
        ("", 2, {}, {}),
        ("a", 0, {}, {}),
        ("a", 2, {}, {"a": 2}),
        ("ba", 2, {}, {"a": 1, "b": 1}),
        ("baaaaa", 2, {}, {"a": 2}),
        ("baaaa", 3, {}, {"a": 3}),
        ("bbaaaa", 3, {}, {"a": 2, "b": 1}),
        ("cab", 2, {}, {"c": 1, "a": 1}),
        ("cab", 2, {"a": 1, "b": 1}, {"a": 1, "b": 1}),
    ],
)
def test_places_go_to_what_is_asked_for_most(
    asked: str, size: int, ready: dict[str, int], places: dict[str, int]
) -> None:
    assert shares(asked, size, ready) == places


# -- trouble in the background --------------------------------------------------------------------


async def test_failures_in_the_background_are_told_once_and_tried_again(
    pool: Pool, ready: Gauge, jails: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "BACKOFF", (0.01, 0.03))
    sandbox = await pool.start(SPEC)
    jails.error = SandboxStartError("no room")
    with capture_logs() as logs:
        await eventually(lambda: jails.failed >= 4, "several attempts")
        assert [(line["log_level"], line["error"]) for line in logs] == [("warning", "no room")]
    taken = [await pool.start(SPEC) for _ in range(ready[-1] if ready else 0)]
    with pytest.raises(SandboxStartError, match="no room"):
        await pool.start(SPEC)
    jails.error = None
    await ready.shows(2)
    for one in (sandbox, *taken):
        await one.close()


async def test_the_wish_of_a_full_house_is_respected(
    pool: Pool, jails: Watched, monkeypatch: pytest.MonkeyPatch, ready: Gauge
) -> None:
    monkeypatch.setattr(pool_module, "BACKOFF", (0.01, 0.03))
    jails.error = SandboxQuota("full", retry_after=300)
    with pytest.raises(SandboxQuota):
        await pool.start(SPEC)
    assert jails.failed == 1
    jails.error = None
    sandbox = await pool.start(SPEC)
    jails.error = SandboxQuota("full", retry_after=300)
    await eventually(lambda: jails.failed == 2, "one attempt in the background")
    pool._wake.set()
    await eventually(lambda: not pool._wake.is_set(), "the keeper looked again")
    assert jails.failed == 2
    await sandbox.close()
