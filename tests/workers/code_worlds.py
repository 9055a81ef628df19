"""What the tests of the code scene share: worlds in real jails, and a short way to one call."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from common.failures import FailureClass, FailureKind
from common.metrics import Metrics
from common.settings import load
from common.trajectory import Action
from tests.helpers import task
from workers.environment import Environment, Scene
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.protocol import ProbeReport
from workers.scenes import build
from workers.tools import ToolOutput

LABELS = {"task": "t", "attempt": "a"}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(scope="module")
def reports() -> list[ProbeReport]:
    """What the probe found: it takes most of a second, and the host stays as it is."""
    return []


@pytest.fixture
async def scene(
    metrics: Metrics, reports: list[ProbeReport], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    probe = NsjailProvider.probe

    async def once(self: NsjailProvider) -> ProbeReport:
        reports.extend([] if reports else [await probe(self)])
        return reports[0]

    monkeypatch.setattr(NsjailProvider, "probe", once)
    scene = build("code", load(sandbox="nsjail"), metrics)
    await scene.open()
    yield scene
    await scene.close()


@pytest.fixture
async def world(scene: Scene) -> AsyncIterator[Environment]:
    async with scene.environment(task(), labels=LABELS) as world:
        await world.reset()
        yield world


async def call(world: Environment, tool: str, _timeout: float = 20.0, **args: Any) -> ToolOutput:
    action = Action(tool=tool, arguments=args, call_id="c")
    assert world.tools.objection(action) is None
    return await world.call(action, timeout=_timeout)


async def python(world: Environment, code: str, _timeout: float = 20.0, **args: Any) -> ToolOutput:
    return await call(world, "run_python", _timeout, code=code, **args)


async def shell(world: Environment, command: str, _timeout: float = 20.0) -> ToolOutput:
    return await call(world, "run_shell", _timeout, command=command)


def blamed(output: ToolOutput, kind: FailureKind) -> str:
    """What the agent is told of a failure that is its own doing."""
    assert not output.success
    assert output.failure is not None
    assert (output.failure.kind, output.failure.failure_class) == (kind, FailureClass.AGENT)
    return output.text
