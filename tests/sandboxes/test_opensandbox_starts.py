"""How a start on an OpenSandbox server fails: in words of ours, and nothing stays on the server."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from common.failures import ConfigurationError
from tests.helpers import eventually
from tests.sandboxes.opensandbox_fixtures import standin as standin
from tests.sandboxes.opensandbox_standin import (
    KEY,
    Fault,
    Standin,
    dropping,
    events,
    hanging,
    refusing,
)
from workers.sandboxes import opensandbox
from workers.sandboxes.opensandbox.settings import OpenSandboxSettings
from workers.sandboxes.protocol import (
    SandboxProvider,
    SandboxQuota,
    SandboxStartError,
    SandboxUnavailable,
    SandboxUnsupported,
)
from workers.sandboxes.spec import NetworkPolicy, SandboxSpec

CREATE = "POST /sandboxes"
LIST = "GET /sandboxes"


@pytest.fixture
async def provider(standin: Standin) -> AsyncIterator[SandboxProvider]:
    provider = of(standin)
    yield provider
    await provider.close()
    assert standin.boxes == {}, "a sandbox was left behind"


def of(standin: Standin, **settings: Any) -> SandboxProvider:
    fields = {"domain": standin.domain, "api_key": KEY, **settings}
    return opensandbox.make(OpenSandboxSettings.model_validate(fields))


def with_nulls(standin: Standin, *names: str) -> Fault:
    """Answer as servers before 0.1.9 did."""

    async def fault(request: web.Request) -> web.Response:
        answer = await standin._create(await request.json())
        box = list(standin.boxes.values())[-1].described()
        return web.json_response({**box, **dict.fromkeys(names)}, status=answer.status)

    return fault


@pytest.mark.parametrize("name", ["metadata", "expiresAt", "platform"])
async def test_nulls_that_the_sdk_cannot_read_are_named_with_the_server_that_is_needed(
    standin: Standin, provider: SandboxProvider, name: str
) -> None:
    standin.version = None  # such servers do not say
    standin.faults[CREATE] = [with_nulls(standin, name)]
    with pytest.raises(ConfigurationError, match=rf"null for {name}.*0\.1\.9"):
        await provider.start(SandboxSpec())
    assert standin.boxes == {}


async def test_a_server_that_says_it_is_too_old_is_asked_for_nothing(
    standin: Standin, provider: SandboxProvider
) -> None:
    standin.version = "0.1.8"
    with pytest.raises(ConfigurationError, match=r"0\.1\.8.*0\.1\.9 or newer"):
        await provider.start(SandboxSpec())
    assert standin.asked(CREATE) == []


@pytest.mark.parametrize(
    ("version", "fits"),
    [("v0.1.8", False), ("0.1.8rc2", False), ("0.1", False), ("v0.1.9", True), ("0.1.9rc1", True)],
)
async def test_versions_are_read_however_they_are_written(
    standin: Standin, provider: SandboxProvider, version: str, fits: bool
) -> None:
    standin.version = version
    if fits:
        await (await provider.start(SandboxSpec())).close()
        return
    with pytest.raises(ConfigurationError, match=r"0\.1\.9 or newer"):
        await provider.start(SandboxSpec())


async def test_a_server_that_cannot_tell_its_version_now_is_asked_again(
    standin: Standin, provider: SandboxProvider
) -> None:
    standin.trouble_at_version = 503
    with pytest.raises(SandboxUnavailable, match="503"):
        await provider.start(SandboxSpec())
    standin.trouble_at_version, standin.version = None, "0.1.8"
    with pytest.raises(ConfigurationError, match=r"0\.1\.8"):
        await provider.start(SandboxSpec())


@pytest.mark.parametrize("status", [408, 409, 423, 425])
async def test_a_server_that_is_busy_may_be_tried_later(
    standin: Standin, provider: SandboxProvider, status: int
) -> None:
    standin.always[CREATE] = refusing(status, "X", "busy")
    with pytest.raises(SandboxUnavailable, match="busy"):
        await provider.start(SandboxSpec())


@pytest.mark.parametrize("status", [400, 422])
async def test_what_a_task_asked_for_wrongly_is_its_own_fault(
    standin: Standin, provider: SandboxProvider, status: int
) -> None:
    standin.always[CREATE] = refusing(status, "X", "egress[0].target 'a..b' is invalid")
    network = NetworkPolicy(mode="allowlist", hosts=("a.b",))
    for spec in (SandboxSpec(image="No Such:Ref!"), SandboxSpec(network=network)):
        with pytest.raises(SandboxUnsupported, match="is invalid"):
            await provider.start(spec)
    with pytest.raises(ConfigurationError, match="is invalid"):
        await provider.start(SandboxSpec())
    with pytest.raises(SandboxUnsupported, match="no name"):
        await provider.start(SandboxSpec(image=""))


async def test_a_server_that_knows_no_sandboxes_is_not_one(
    standin: Standin, provider: SandboxProvider
) -> None:
    standin.always[CREATE] = refusing(404, "X", "Not Found")
    with pytest.raises(ConfigurationError, match="FLEET_OPENSANDBOX_DOMAIN"):
        await provider.start(SandboxSpec())


async def test_a_wrong_key_is_told_without_showing_it(standin: Standin) -> None:
    provider = of(standin, api_key="a-wrong-key-4711")
    with pytest.raises(ConfigurationError, match="FLEET_OPENSANDBOX_API_KEY") as refused:
        await provider.start(SandboxSpec())
    assert "4711" not in f"{refused.value!r} {refused.value.__context__}"
    assert "4711" not in repr(OpenSandboxSettings(domain="d", api_key="a-wrong-key-4711"))
    await provider.close()


async def test_too_many_sandboxes_are_a_quota_with_the_time_to_wait(
    standin: Standin, provider: SandboxProvider
) -> None:
    standin.faults[CREATE] = [refusing(429, "POOL::EXHAUSTED", "pool is empty", Retry_After="7")]
    with pytest.raises(SandboxQuota, match="pool is empty") as refused:
        await provider.start(SandboxSpec())
    assert refused.value.retry_after == 7
    standin.faults[CREATE] = [refusing(403, "KUBERNETES::QUOTA_EXCEEDED", "namespace is full")]
    with pytest.raises(SandboxQuota, match="namespace is full"):
        await provider.start(SandboxSpec())


async def test_a_server_in_trouble_may_be_tried_later(
    standin: Standin, provider: SandboxProvider
) -> None:
    for status in (500, 502, 503):
        standin.faults[CREATE] = [refusing(status, "GENERAL::UNKNOWN_ERROR", "database is down")]
        with pytest.raises(SandboxUnavailable, match="database is down"):
            await provider.start(SandboxSpec())
    async with await provider.start(SandboxSpec()) as sandbox:
        assert await sandbox.is_alive()


async def test_a_server_that_is_not_there_may_be_tried_later(standin: Standin) -> None:
    provider = of(standin)
    await standin.stop()
    began = time.monotonic()
    with pytest.raises(SandboxUnavailable, match="cannot be reached"):
        await provider.start(SandboxSpec())
    assert time.monotonic() - began < 10
    await standin.__aenter__()
    async with await provider.start(SandboxSpec()) as sandbox:
        assert await sandbox.is_alive()
    await provider.close()


async def test_an_image_that_cannot_be_pulled_is_named(provider: SandboxProvider) -> None:
    with pytest.raises(SandboxStartError, match="missing/image:1"):
        await provider.start(SandboxSpec(image="missing/image:1"))


@pytest.mark.parametrize("exit_code", ["127", "78"])
async def test_an_image_without_a_python_is_named_to_whoever_chose_it(
    standin: Standin, provider: SandboxProvider, exit_code: str
) -> None:
    error = {"ename": "CommandExecError", "evalue": exit_code, "traceback": []}
    no_python = events({"type": "init", "text": "1"}, {"type": "error", "error": error})
    standin.faults["POST execd/command"] = [no_python, no_python]
    with pytest.raises(SandboxUnsupported, match=r"busybox:1 has no python3 .*3\.9"):
        await provider.start(SandboxSpec(image="busybox:1"))
    with pytest.raises(ConfigurationError, match=r"python:3.*has no python3"):
        await provider.start(SandboxSpec())


async def test_a_sandbox_that_runs_no_command_is_no_use(
    standin: Standin, provider: SandboxProvider
) -> None:
    standin.faults["POST execd/command"] = [refusing(500, "RUNTIME_ERROR", "no shell")]
    with pytest.raises(SandboxStartError, match=r"no use.*no shell"):
        await provider.start(SandboxSpec())
    assert standin.boxes == {}


@pytest.mark.parametrize("lost", ["answer", "connection"])
async def test_what_a_lost_answer_was_about_is_found_and_ended(
    standin: Standin, provider: SandboxProvider, lost: str
) -> None:
    async def created_in_vain(request: web.Request) -> web.Response:
        await standin._create(await request.json())
        return web.json_response({"code": "GENERAL::UNKNOWN_ERROR", "message": "oops"}, status=500)

    standin.faults[CREATE] = [created_in_vain if lost == "answer" else dropping(standin)]
    with pytest.raises(SandboxUnavailable):
        await provider.start(SandboxSpec())
    assert len(standin.asked(LIST)) == 1
    assert standin.boxes == {}


async def test_a_start_that_takes_too_long_is_given_up(standin: Standin) -> None:
    provider = of(standin, create_timeout=0.5)
    standin.faults[CREATE] = [created_then_silent(standin)]
    with pytest.raises(SandboxStartError, match=r"within 0\.5 s"):
        await provider.start(SandboxSpec())
    assert standin.boxes == {}
    await provider.close()


def created_then_silent(standin: Standin) -> Fault:
    async def fault(request: web.Request) -> web.Response:
        await standin._create(await request.json())
        await asyncio.Event().wait()
        raise AssertionError

    return fault


async def test_what_a_cancelled_start_makes_is_ended_when_the_server_has_made_it(
    standin: Standin, provider: SandboxProvider
) -> None:
    asked, may_go_on = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> None:
        asked.set()
        await may_go_on.wait()

    standin.faults[CREATE] = [slow]
    starting = asyncio.create_task(provider.start(SandboxSpec()))
    await asked.wait()
    starting.cancel()
    began = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert time.monotonic() - began < 1, "nobody waits for the server"
    may_go_on.set()
    await eventually(lambda: len(standin.asked("DELETE /sandboxes/{id}")) == 1, "it is ended")
    assert standin.boxes == {}


async def test_a_provider_that_closes_does_not_wait_for_a_server_that_hangs(
    standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("workers.sandboxes.opensandbox.provider")
    monkeypatch.setattr(module, "CLOSE_PATIENCE", 0.3)
    provider = of(standin)
    standin.faults[CREATE] = [created_then_silent(standin)]
    starting = asyncio.create_task(provider.start(SandboxSpec()))
    await eventually(lambda: len(standin.boxes) == 1, "the server has made it")
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await provider.close()
    assert standin.boxes == {}


async def test_a_policy_goes_to_the_server_and_denies_all_but_the_list(
    standin: Standin, provider: SandboxProvider
) -> None:
    hosts = ("a.example.org", "*.example.org")
    async with await provider.start(SandboxSpec()) as closed:
        assert closed.enforced["network"] == "server: egress policy, deny all"
    network = NetworkPolicy(mode="allowlist", hosts=hosts)
    async with await provider.start(SandboxSpec(network=network)) as listed:
        assert "a.example.org" in str(listed.enforced["network"])
    sent = [seen.body["networkPolicy"] for seen in standin.asked(CREATE)]
    assert sent[0] == {"defaultAction": "deny", "egress": []}
    assert [(rule["action"], rule["target"]) for rule in sent[1]["egress"]] == [
        ("allow", host) for host in hosts
    ]


async def test_a_server_that_takes_no_policy_starts_nothing() -> None:
    async with Standin(sidecar=False) as standin:
        provider = of(standin)
        with pytest.raises(ConfigurationError, match="FLEET_OPENSANDBOX_NETWORK=closed"):
            await provider.start(SandboxSpec())
        assert standin.boxes == {}
        await provider.close()
        closed = of(standin, network="closed")
        assert "allowlist" not in closed.capabilities
        with pytest.raises(SandboxUnsupported, match="list of hosts"):
            network = NetworkPolicy(mode="allowlist", hosts=("a.example.org",))
            await closed.start(SandboxSpec(network=network))
        async with await closed.start(SandboxSpec()) as sandbox:
            assert "as configured" in str(sandbox.enforced["network"])
        assert "networkPolicy" not in standin.asked(CREATE)[-1].body
        await closed.close()


async def test_neither_telemetry_nor_our_address_nor_the_key_go_where_they_should_not(
    standin: Standin, provider: SandboxProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPEN_SANDBOX_API_KEY", "of-something-else")
    async with await provider.start(SandboxSpec()) as sandbox:
        await sandbox.exec("true")
        await sandbox.write_file("x", b"x")
    assert not any("metrics" in seen.route for seen in standin.journal)
    for seen in standin.journal:
        headers = {name.upper(): value for name, value in seen.headers.items()}
        assert "OPEN-SANDBOX-CLIENT-IP" not in headers
        assert headers.get("OPEN-SANDBOX-API-KEY") == (None if "execd" in seen.route else KEY)


async def test_without_the_sdk_the_command_that_installs_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in list(sys.modules):
        if name.startswith("workers.sandboxes.opensandbox."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opensandbox", None)
    settings = OpenSandboxSettings(domain="127.0.0.1:1")
    with pytest.raises(ConfigurationError, match=r"pip install .*opensandbox"):
        opensandbox.make(settings)


async def test_a_probe_of_a_server_without_sandboxes_says_so(
    standin: Standin, provider: SandboxProvider
) -> None:
    standin.always[CREATE] = refusing(500, "DOCKER::SANDBOX_START_FAILED", "no space on device")
    with pytest.raises(ConfigurationError, match="no space on device"):
        await provider.probe()
    standin.always[CREATE] = hanging()
    slow = of(standin, create_timeout=0.3)
    with pytest.raises(ConfigurationError, match="did not start"):
        await slow.probe()
    await slow.close()


async def test_what_is_being_started_ends_with_its_provider(standin: Standin) -> None:
    provider = opensandbox.make(OpenSandboxSettings(domain=standin.domain, api_key=KEY))
    starts = [asyncio.create_task(provider.start(SandboxSpec())) for _ in range(3)]
    await eventually(lambda: len(standin.boxes) > 0, "the server makes one", within=10)
    await provider.close()
    results = await asyncio.gather(*starts, return_exceptions=True)
    assert all(isinstance(result, SandboxUnavailable) for result in results), results
    assert standin.boxes == {}
