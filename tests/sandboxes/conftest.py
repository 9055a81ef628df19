"""Sandboxes for the tests, each back-end and mode in turn; nothing may stay behind."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.sandboxes.hostile_host import Host, small, untouched_host  # noqa: F401 - fixtures
from workers.sandboxes.nsjail import cgroups
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.nsjail.records import Record
from workers.sandboxes.protocol import Sandbox, SandboxProvider
from workers.sandboxes.spec import SandboxSpec

pytest.register_assert_rewrite(
    *(f"tests.sandboxes.conformance{part}" for part in ("_files", "_life", "_output", "_programs")),
    "tests.sandboxes.opensandbox_conformance",
    *(f"tests.sandboxes.hostile{part}" for part in ("_files", "_forging", "_kernel", "_programs")),
)

# A new back-end adds its name here and a line in `provider`; the conformance suite is the same.
BACKENDS = ("nsjail-cgroup", "nsjail-rlimit")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The folder in which the provider notes its jails."""
    return tmp_path / "jails"


@pytest.fixture
def quirks() -> frozenset[str]:
    """What the back-end cannot do, of `conformance.QUIRKS`."""
    return frozenset()


@pytest.fixture(params=BACKENDS)
async def provider(
    request: pytest.FixtureRequest,
    records: Path,
    untouched_host: Host,  # noqa: F811 - pytest finds it by this name
) -> AsyncIterator[SandboxProvider]:
    use_cgroups = request.param == "nsjail-cgroup"
    if use_cgroups and cgroups.find() is None:
        pytest.skip("this user may not make control groups here")
    provider = NsjailProvider(records=records, use_cgroups=use_cgroups)
    yield provider
    await provider.close()
    assert list(records.iterdir()) == [], "a jail was left behind"


@pytest.fixture
async def sandbox(provider: SandboxProvider) -> AsyncIterator[Sandbox]:
    async with await provider.start(SandboxSpec()) as sandbox:
        yield sandbox


@pytest.fixture
def wreck(records: Path) -> Callable[[Sandbox], Awaitable[None]]:
    """Kill the only jail there is, as an operator or the kernel might."""

    async def kill(sandbox: Sandbox) -> None:
        (file,) = records.glob("*.json")
        jail = Record.model_validate_json(file.read_bytes()).jail
        assert jail is not None
        os.kill(jail.pid, signal.SIGKILL)

    return kill
