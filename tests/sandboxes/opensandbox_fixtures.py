"""The OpenSandbox back-end over its stand-in; modules of tests import what they use."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.sandboxes.opensandbox_standin import KEY, Standin
from workers.sandboxes import opensandbox
from workers.sandboxes.opensandbox.settings import OpenSandboxSettings
from workers.sandboxes.protocol import SandboxProvider


@pytest.fixture
async def standin() -> AsyncIterator[Standin]:
    async with Standin() as standin:
        yield standin


@pytest.fixture
async def provider(standin: Standin) -> AsyncIterator[SandboxProvider]:
    provider = opensandbox.make(OpenSandboxSettings(domain=standin.domain, api_key=KEY))
    yield provider
    await provider.close()
    assert standin.boxes == {}, "a sandbox was left behind"
