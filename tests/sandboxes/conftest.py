"""Sandboxes for the tests, each back-end and mode in turn; nothing may stay behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from workers.sandboxes.nsjail import cgroups
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.protocol import Sandbox, SandboxProvider
from workers.sandboxes.spec import SandboxSpec

# A new back-end adds its name here and a line in `provider`; the conformance suite is the same.
BACKENDS = ("nsjail-cgroup", "nsjail-rlimit")


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The folder in which the provider notes its jails."""
    return tmp_path / "jails"


@pytest.fixture(params=BACKENDS)
async def provider(request: pytest.FixtureRequest, records: Path) -> AsyncIterator[SandboxProvider]:
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
