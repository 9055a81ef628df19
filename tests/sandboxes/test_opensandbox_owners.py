"""Sandboxes on an OpenSandbox server live as long as somebody wants them to, and no longer."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from tests.helpers import eventually
from tests.sandboxes.opensandbox_fixtures import standin as standin
from tests.sandboxes.opensandbox_standin import KEY, Box, Standin, refusing
from workers.sandboxes.opensandbox import labels, lease
from workers.sandboxes.opensandbox.provider import OpenSandboxProvider
from workers.sandboxes.opensandbox.server import Server
from workers.sandboxes.opensandbox.settings import OpenSandboxSettings
from workers.sandboxes.processes import ProcessMark
from workers.sandboxes.protocol import SandboxLost, SandboxUnavailable
from workers.sandboxes.spec import Limits, SandboxSpec

RENEW = "POST /sandboxes/{id}/renew-expiration"
KILL = "DELETE /sandboxes/{id}"
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


@pytest.fixture
async def provider(standin: Standin) -> AsyncIterator[OpenSandboxProvider]:
    provider = OpenSandboxProvider(settings(standin))
    yield provider
    await provider.close()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> float:
    """Make renewals come often."""
    monkeypatch.setattr(lease, "RENEW_EVERY", 0.1)
    return 0.1


def settings(standin: Standin) -> OpenSandboxSettings:
    return OpenSandboxSettings.model_validate({"domain": standin.domain, "api_key": KEY})


def only(standin: Standin) -> Box:
    (box,) = standin.boxes.values()
    return box


async def test_a_life_is_short_and_renewed_until_the_end(
    standin: Standin, provider: OpenSandboxProvider, brief: float
) -> None:
    async with await provider.start(SandboxSpec(limits=Limits(ttl=6000))):
        box = only(standin)
        assert box.expires < datetime.now(UTC) + timedelta(seconds=lease.TTL + 1)
        first = box.expires
        await eventually(lambda: box.expires > first, "it is renewed")
        await eventually(lambda: len(standin.asked(RENEW)) > 3, "and again")
        assert box.expires < datetime.now(UTC) + timedelta(seconds=lease.TTL + 1)
    asked = len(standin.asked(RENEW))
    assert standin.boxes == {}
    assert len(standin.asked(RENEW)) == asked


async def test_a_sandbox_that_the_server_forgot_is_lost(
    standin: Standin, provider: OpenSandboxProvider, brief: float
) -> None:
    async with await provider.start(SandboxSpec()) as sandbox:
        standin.always[RENEW] = refusing(404, "DOCKER::SANDBOX_NOT_FOUND", "gone")
        began = time.monotonic()
        with pytest.raises(SandboxLost, match="does not know it any more"):
            await sandbox.exec("sleep 20")
        assert time.monotonic() - began < 10
        assert not await sandbox.is_alive()


async def test_a_server_in_trouble_has_time_to_recover(
    standin: Standin,
    provider: OpenSandboxProvider,
    brief: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with await provider.start(SandboxSpec()) as sandbox:
        standin.always[RENEW] = refusing(503, "X", "restarting")
        tried = len(standin.asked(RENEW))
        await eventually(lambda: len(standin.asked(RENEW)) > tried + 3, "renewals fail")
        assert (await sandbox.exec("echo on")).stdout == "on\n"
        del standin.always[RENEW]
        before = only(standin).expires
        await eventually(lambda: only(standin).expires > before, "renewals work again")
        monkeypatch.setattr(lease, "TTL", 0.3)
        standin.always[RENEW] = refusing(503, "X", "down for good")
        with pytest.raises(SandboxLost, match="down for good"):
            await sandbox.exec("sleep 20")


async def test_an_end_is_bounded_and_never_raises(
    standin: Standin, provider: OpenSandboxProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "KILL_PATIENCE", 1.5)
    sandbox = await provider.start(SandboxSpec())
    standin.always[KILL] = refusing(500, "DOCKER::SANDBOX_DELETE_FAILED", "device is busy")
    began = time.monotonic()
    await sandbox.close()
    assert time.monotonic() - began < 3
    assert len(standin.asked(KILL)) > 1, "it is tried more than once"
    assert not await sandbox.is_alive()


async def test_what_is_gone_already_is_ended(
    standin: Standin, provider: OpenSandboxProvider
) -> None:
    sandbox = await provider.start(SandboxSpec())
    await standin.boxes.pop(only(standin).id).end()
    await sandbox.close()
    assert len(standin.asked(KILL)) == 1


async def test_labels_are_such_as_the_server_takes(
    standin: Standin, provider: OpenSandboxProvider
) -> None:
    given = {"task": "好/a\n" + "x" * 100, "attempt id": "-.-", "empty": "", "worker": "w1"}
    async with await provider.start(SandboxSpec(labels=given)) as sandbox:
        metadata = only(standin).metadata
        for key, value in metadata.items():
            assert LABEL.fullmatch(key)
            assert value == "" or LABEL.fullmatch(value)
        assert metadata["fleet.task.worker"] == "w1"
        assert metadata["fleet.task.attempt-id"] == ""
        assert metadata["fleet.owner"].startswith(f"{ProcessMark.own().pid}-")
        await sandbox.label({"task": "t2"})
        await eventually(
            lambda: only(standin).metadata["fleet.task.task"] == "t2", "it is relabelled"
        )
        assert only(standin).metadata["fleet.owner"] == metadata["fleet.owner"]


async def test_the_reaper_ends_what_dead_owners_left_and_nothing_else(
    standin: Standin, provider: OpenSandboxProvider
) -> None:
    names = ("mine", "dead", "reused", "elsewhere", "forgotten", "torn", "strange")
    sandboxes = {name: await provider.start(SandboxSpec(labels={"n": name})) for name in names}
    boxes = {box.metadata["fleet.task.n"]: box for box in standin.boxes.values()}
    own = ProcessMark.own()
    changed = {
        "dead": {"fleet.owner": "999999999-1"},
        "reused": {"fleet.owner": f"{own.pid}-{own.started - 1}"},
        "elsewhere": {"fleet.owner": "1-1", "fleet.pids": "another-1"},
        "forgotten": {"fleet.owner": "1-1", "fleet.pids": "another-1"},
        "torn": {"fleet.owner": "what"},
        "strange": {"fleet.owner": "999999999-1", "fleet.system": "another"},
    }
    for name, marks in changed.items():
        boxes[name].request["metadata"] |= marks
    boxes["forgotten"].expires = datetime.now(UTC) - labels.SLACK - timedelta(seconds=1)
    assert await provider.reap() == 3
    left = {box.metadata["fleet.task.n"] for box in standin.boxes.values()}
    assert left == {"mine", "elsewhere", "torn", "strange"}
    assert await provider.reap() == 0
    assert await sandboxes["mine"].is_alive()


async def test_the_reaper_sees_every_page_of_a_long_list(
    standin: Standin, provider: OpenSandboxProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.sandboxes.opensandbox.server.PAGE", 1)
    for _ in range(3):
        await provider.start(SandboxSpec())
    for box in standin.boxes.values():
        box.request["metadata"]["fleet.owner"] = "999999999-1"
    assert await provider.reap() == 3
    assert standin.boxes == {}


async def test_a_reaper_without_a_server_says_so(
    standin: Standin, provider: OpenSandboxProvider
) -> None:
    await standin.stop()
    with pytest.raises(SandboxUnavailable, match="cannot be reached"):
        await provider.reap()


async def test_lives_are_renewed_in_the_time_of_the_server(standin: Standin) -> None:
    server = Server(settings(standin))
    request = httpx.Request("GET", f"http://{standin.domain}/v1/sandboxes")
    for ahead, skew in ((3600, 3600), (-3600, -3600), (2, 0)):
        date = datetime.now(UTC) + timedelta(seconds=ahead)
        headers = {"date": date.strftime("%a, %d %b %Y %H:%M:%S GMT")}
        await server._look_at(httpx.Response(200, headers=headers, request=request))
        assert abs(server.skew.total_seconds() - skew) < 3
    await server._look_at(httpx.Response(200, headers={"date": "today"}, request=request))
    for elsewhere in (
        f"http://{standin.domain}/v1/sandboxes/1/proxy/44772/ping",
        f"http://{standin.domain}/direct/1/ping",
        "http://127.0.0.1:1/v1/sandboxes",
    ):
        date = datetime.now(UTC) + timedelta(hours=1)
        headers = {"date": date.strftime("%a, %d %b %Y %H:%M:%S GMT")}
        request = httpx.Request("GET", elsewhere)
        await server._look_at(httpx.Response(200, headers=headers, request=request))
        assert server.skew == timedelta(), "a sandbox may say any time"
    await server.close()


def test_settings_name_what_is_wrong_with_them() -> None:
    for domain in ("", "http://host/", "a b"):
        with pytest.raises(ValueError, match="domain"):
            OpenSandboxSettings(domain=domain)
