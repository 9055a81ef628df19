"""The way to the server: URLs, passwords that stay secret, the library, and waiting."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis

from common.failures import ConfigurationError
from common.process import free_port
from common.queue import library as scripts
from common.queue.address import read, where
from common.queue.connection import Server, ServerGone, blocking_client
from common.queue.embedded import EmbeddedServer
from common.queue.library import library
from common.queue.scene_queue import SceneQueue
from common.settings import load
from fleet import doctor
from tests.chaos.proxy import Proxy
from tests.chaos.sentinel import PASSWORD, SENTINEL_PASSWORD, Pair
from tests.helpers import eventually, task, units

SECRET = "hunter2"


# -- URLs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"redis://:{SECRET}@127.0.0.1:6380/0", "127.0.0.1:6380"),
        (f"rediss://me:{SECRET}@queue.example", "queue.example:6379"),
        (f"redis://:{SECRET}@[::1]:6380/0", "[::1]:6380"),
        ("unix:///run/valkey.sock", "/run/valkey.sock"),
        (f"redis+sentinel://:{SECRET}@a/fleet", "fleet (sentinels a:26379)"),
        (
            f"rediss+sentinel://me:{SECRET}@a:1,b,[::1]:3/my%20fleet/2?sentinel_password={SECRET}",
            "my%20fleet (sentinels a:1,b:26379,[::1]:3)",
        ),
    ],
)
async def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert where(url) == shown
    server = Server(url)
    assert SECRET not in repr(server.client) + repr(server.address) + str(server.address)
    await server.close()
    blocking_client(url).close()


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@host",
        f"redis://:x/{SECRET}@host:6379/0",
        f"redis://:x@host:{SECRET}/0",
        f"redis://:{SECRET}@{'a' * 70}/0",
        f"redis://:{SECRET}@host/0?no_such_option=1",
        f"redis://:{SECRET}@host/0?socket_timeout=soon",
        f"redis+sentinel://:{SECRET}@host",
        f"redis+sentinel://:{SECRET}@/fleet",
        f"redis+sentinel://:{SECRET}@host/fleet/zero",
        f"redis+sentinel://:{SECRET}@host:{SECRET}/fleet",
        f"redis+sentinel://:{SECRET}@host/fleet?sentinel_pasword=x",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="FLEET_REDIS_URL") as refused:
        read(url)
    assert SECRET not in str(refused.value)
    assert SECRET not in where(url)


def test_user_password_database_and_options_reach_the_master_and_the_sentinels() -> None:
    client = blocking_client(
        "rediss+sentinel://me:p%40ss@a:1,b/fleet/3?sentinel_username=s&sentinel_password=t%2Fu"
        "&ssl_cert_reqs=none"
    )
    kwargs = client.connection_pool.connection_kwargs
    assert (kwargs["username"], kwargs["password"], kwargs["db"]) == ("me", "p@ss", 3)
    assert kwargs["ssl_cert_reqs"] == "none"
    asked: dict[str, Any] = client.connection_pool.sentinel_manager.sentinel_kwargs
    assert (asked["username"], asked["password"]) == ("s", "t/u")
    assert (asked["ssl"], asked["ssl_cert_reqs"]) == (True, "none")


# -- what is refused, and what is waited for -----------------------------------------------------


async def test_a_wrong_password_is_a_persons_to_mend_at_the_start(valkey: EmbeddedServer) -> None:
    server = Server(f"redis://:{SECRET}@127.0.0.1:{valkey.port}/0")
    with pytest.raises(ConfigurationError, match="check user and password") as refused:
        await server.check()
    assert SECRET not in str(refused.value)
    await server.close()


async def test_a_password_changed_while_we_run_is_waited_for(tmp_path: Path) -> None:
    valkey = EmbeddedServer(tmp_path)
    valkey.start()
    server = Server(valkey.url, patience=20)
    try:
        await server.check()
        own = redis.Redis.from_url(valkey.url)
        own.config_set("requirepass", "another")
        own.execute_command("CLIENT", "KILL", "TYPE", "normal")
        asked = asyncio.create_task(server.fcall("promote", ("p", "a", "b", "c"), (1,)))
        done, _ = await asyncio.wait({asked}, timeout=0.5)
        assert not done
        own.config_set("requirepass", valkey.url.split(":")[2].split("@")[0])
        own.close()
        assert await asyncio.wait_for(asked, 20) == 0
    finally:
        await server.close()
        valkey.stop()


async def test_a_name_that_cannot_be_resolved_is_waited_for() -> None:
    server = Server("redis://no-such-host.invalid:6379/0", patience=0.3)
    with pytest.raises(ServerGone, match=r"no-such-host\.invalid:6379"):
        await server.check()
    assert not await server.answers()
    await server.close()


async def test_a_command_line_does_not_wait_for_an_absent_server() -> None:
    server = Server(f"redis://127.0.0.1:{free_port()}/0", patience=0.2)
    with pytest.raises(ServerGone, match="fleet up"):
        await server.fcall("promote", ("p", "a", "b", "c"), (1,))
    await server.close()


async def test_sentinels_that_refuse_us_are_said_without_a_password(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        server = Server(pair.url.replace("sentinels", "others"), patience=0.2)
        with pytest.raises(ServerGone, match="sentinel_password") as gone:
            await server.check()
        assert "of:the" not in str(gone.value)
        assert PASSWORD not in str(gone.value)
        await server.close()


async def test_a_read_only_replica_is_waited_for_and_said(tmp_path: Path) -> None:
    async with Pair(tmp_path) as pair:
        server = Server(pair.replica.url, patience=0.3)
        with pytest.raises(ServerGone, match="read-only replica"):
            await server.check()
        await server.close()


async def test_asynchronous_replicas_are_doubtful_until_the_master_waits_for_one(
    tmp_path: Path,
) -> None:
    async with Pair(tmp_path) as pair:
        server = Server(pair.url, patience=10)
        await server.check()
        assert "min-replicas-to-write" in server.doubts[0]
        looked = await doctor._server(load(redis_url=pair.url))
        assert (looked.state, "asynchronous" in looked.detail) == ("warning", True)
        await server.client.config_set("min-replicas-to-write", 1)
        await server.check()
        assert server.doubts == ()
        assert (await doctor._server(load(redis_url=pair.url))).state == "ok"
        await server.close()
        blocking = blocking_client(pair.url, timeout=2)
        assert blocking.ping()
        blocking.close()
        assert SENTINEL_PASSWORD not in str(server.address)


async def test_a_master_that_lost_its_replica_is_waited_for_where_it_must_have_one(
    tmp_path: Path,
) -> None:
    async with Pair(tmp_path) as pair:
        server = Server(pair.url, patience=30)
        await server.fcall("promote", ("p", "a", "b", "c"), (1,))
        await server.client.config_set("min-replicas-to-write", 1)
        await asyncio.to_thread(pair.replica.kill)
        queue = SceneQueue(server, "code")
        await eventually(lambda: _no_replica(server), "the master notices")
        asked = asyncio.create_task(queue.publish([units(task("t"))]))

        async def pipelined() -> None:
            async with server.client.pipeline(transaction=False) as pipe:
                pipe.set("x", "y")
                await pipe.execute()

        also = asyncio.create_task(server.persist(pipelined))
        done, _ = await asyncio.wait({asked, also}, timeout=0.5)
        assert not done
        await asyncio.to_thread(pair.replica.start)
        assert (await asyncio.wait_for(asked, 30)).published == 1
        await asyncio.wait_for(also, 30)
        await server.close()


async def test_who_closes_a_client_leaves_no_connection(
    valkey: EmbeddedServer, server: Server
) -> None:
    before = len(await server.client.client_list())
    for _ in range(5):
        other, blocking = Server(valkey.url), blocking_client(valkey.url)
        assert await other.answers()
        assert blocking.ping()
        await other.close()
        blocking.close()
    await eventually(lambda: _clients(server, before), "the server has seen them off")


async def _clients(server: Server, count: int) -> bool:
    return len(await server.client.client_list()) <= count


async def _no_replica(server: Server) -> bool:
    return (await server.client.info("replication"))["connected_slaves"] == 0


# -- one connection, many callers ----------------------------------------------------------------


@pytest.fixture
async def counter(either: Server) -> AsyncIterator[Server]:
    """A server with a function of ours beside the library's."""
    version = library()[0]
    body = (
        f"redis.register_function('echo_{version}', function(k, a) return a end)\n"
        f"redis.register_function('slow_{version}', function(k, a)\n"
        "  local sum = 0; for i = 1, tonumber(a[1]) do sum = sum + i end; return 1 end)\n"
        f"redis.register_function('wrong_{version}', function(k, a)\n"
        "  return redis.error_reply('WRONG on purpose') end)\n"
    )
    await either.client.function_load(f"#!lua name=testing\n{body}", replace=True)
    yield either
    await either.client.function_delete("testing")


async def test_each_of_many_callers_gets_its_own_answer(counter: Server) -> None:
    async def caller(n: int) -> None:
        for turn in range(50):
            word = f"{n}-{turn}".encode()
            assert await counter.fcall("echo", ("k",), (word, turn)) == [word, b"%d" % turn]

    await asyncio.gather(*(caller(n) for n in range(40)))


async def test_a_caller_that_leaves_or_errs_costs_the_others_nothing(counter: Server) -> None:
    await counter.fcall("echo", ("k",), ("warm",))
    leaving = [asyncio.create_task(counter.fcall("slow", ("k",), (3_000_000,))) for _ in range(3)]
    erring = [asyncio.create_task(counter.fcall("wrong", ("k",), ())) for _ in range(3)]
    staying = [asyncio.create_task(counter.fcall("echo", ("k",), (n,))) for n in range(20)]
    await asyncio.sleep(0)
    for one in leaving:
        one.cancel()
    answers = await asyncio.gather(*staying)
    assert answers == [[b"%d" % n] for n in range(20)]
    for one in erring:
        with pytest.raises(redis.exceptions.ResponseError, match="on purpose"):
            await one
    with pytest.raises(redis.exceptions.DataError):
        await counter.fcall("echo", ("k",), (object(),))
    assert await counter.fcall("echo", ("k",), ("still",)) == [b"still"]


async def test_calls_cut_off_at_any_byte_are_asked_again(valkey: EmbeddedServer) -> None:
    async with Proxy(valkey.url) as proxy:
        server = Server(proxy.url, patience=30)
        await server.client.flushall()
        queue = SceneQueue(server, "code", consumer="a")
        for n in range(40):
            proxy.cut_after(17 * n)
            await queue.publish([units(task(f"t{n}"))])
        counts = await queue.counts()
        assert (counts.waiting, counts["tasks"], counts.unaccounted) == (40, 40, 0)
        assert proxy.cuts >= 10
        await server.close()


async def test_a_server_that_accepts_and_never_answers_is_away(
    valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.queue.connection._SOCKET_TIMEOUT", 0.5)
    async with Proxy(valkey.url) as proxy:
        server = Server(proxy.url, patience=20)
        await server.fcall("promote", ("p", "a", "b", "c"), (1,))
        proxy.stall()
        assert not await server.answers()
        asked = asyncio.create_task(server.fcall("promote", ("p", "a", "b", "c"), (1,)))
        done, _ = await asyncio.wait({asked}, timeout=1.5)
        assert not done
        proxy.heal()
        assert await asyncio.wait_for(asked, 10) == 0
        assert await server.answers()
        await server.close()


# -- the library ---------------------------------------------------------------------------------


async def test_a_library_that_is_gone_is_loaded_again_whoever_calls_first(either: Server) -> None:
    async def caller() -> None:
        server = Server(either.url, patience=20)
        try:
            for _ in range(30):
                assert await server.fcall("promote", ("p", "a", "b", "c"), (1,)) == 0
        finally:
            await server.close()

    async def flusher() -> None:
        for _ in range(20):
            await either.client.function_flush()
            await asyncio.sleep(0.01)

    await asyncio.gather(flusher(), *(caller() for _ in range(8)))


async def test_old_libraries_are_bounded_and_a_removed_one_comes_back(
    either: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await either.client.function_flush()
    for release in range(14):
        name = f"fleet_0000{release:04d}"
        await either.client.function_load(
            f"#!lua name={name}\nredis.register_function('f_{name}', function() return 1 end)"
        )
        await either.client.zadd("fleet:libraries", {name: 1000 + release})
    await either.client.function_load(
        "#!lua name=theirs\nredis.register_function('theirs', function() return 1 end)"
    )
    await either.fcall("promote", ("p", "a", "b", "c"), (1,))
    await asyncio.gather(*(either.check() for _ in range(4)))
    listed = await either.client.function_list()
    names = sorted(scripts._names(listed))
    assert names == sorted(
        [f"fleet_{library()[0]}", "theirs", *(f"fleet_0000{n:04d}" for n in range(6, 14))]
    )
    await either.check()
    assert await either.client.zcard("fleet:libraries") == 9
    await either.client.function_delete(f"fleet_{library()[0]}")
    assert await either.fcall("promote", ("p", "a", "b", "c"), (1,)) == 0
    await either.client.function_delete("theirs")


async def test_a_full_server_takes_no_new_work_but_lets_go_of_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for binary in (None, shutil.which("redis-server")):
        valkey = EmbeddedServer(tmp_path / str(binary is None), binary=binary)
        valkey.start()
        server = Server(valkey.url, patience=20)
        try:
            queue = SceneQueue(server, "code", consumer="a")
            await queue.publish([units(task(f"t{n}", description="x" * 5000)) for n in range(20)])
            used = (await server.client.info("memory"))["used_memory"]
            await server.client.config_set("maxmemory", used // 2)
            asked = asyncio.create_task(queue.publish([units(task("late"))]))
            held = await queue.take(20)
            assert len(held) == 20
            assert await queue.release(held[:10]) == 10
            await queue.promote()
            await queue.gc()
            await queue.reclaim(5, lease=60, max_deliveries=3)
            assert not asked.done()
            await server.client.config_set("maxmemory", 0)
            assert (await asyncio.wait_for(asked, 10)).published == 1
        finally:
            await server.close()
            valkey.stop()


async def test_an_embedded_server_answers_within_moments_of_its_start(tmp_path: Path) -> None:
    began = time.monotonic()
    valkey = EmbeddedServer(tmp_path)
    valkey.start()
    server = Server(valkey.url)
    await eventually(server.answers, "it answers", within=5)
    await server.close()
    valkey.stop()
    assert time.monotonic() - began < 20
