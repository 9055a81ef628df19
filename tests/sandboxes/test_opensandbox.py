"""The conformance suite over the OpenSandbox SDK and a stand-in for its server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from tests.sandboxes.opensandbox_conformance import *  # noqa: F403
from tests.sandboxes.opensandbox_fixtures import provider as provider
from tests.sandboxes.opensandbox_fixtures import standin as standin
from tests.sandboxes.opensandbox_standin import Standin
from workers.sandboxes.protocol import Sandbox, SandboxProvider
from workers.sandboxes.spec import SandboxSpec


@pytest.fixture
def wreck(standin: Standin) -> Callable[[Sandbox], Awaitable[None]]:
    async def kill(sandbox: Sandbox) -> None:
        (box,) = standin.boxes.values()
        box.process.kill()
        await box.process.wait()

    return kill


async def test_programs_can_neither_kill_nor_read_what_watches_them(sandbox: Sandbox) -> None:
    result = await sandbox.exec(
        "kill -9 -1; cat /tmp/.fleet-*/* /proc/1/environ; echo forged >/proc/$PPID/fd/11; echo on"
    )
    assert (result.status, result.stdout) == ("ok", "on\n")
    assert result.stderr.count("Permission denied") >= 2
    assert await sandbox.is_alive()


async def test_two_sandboxes_have_two_users(provider: SandboxProvider) -> None:
    async with (
        await provider.start(SandboxSpec()) as one,
        await provider.start(SandboxSpec()) as two,
    ):
        assert (await one.exec("id -u")).stdout != (await two.exec("id -u")).stdout
        assert (await one.exec("id -un; id -gn; cd; pwd")).stdout == "agent\nagent\n/work\n"
