"""What the tests of checks share: a short way to one result."""

from __future__ import annotations

from typing import Any

import pytest

from common.trajectory import CheckResult
from tests.workers.verify.scripted import Judge, ScriptedSandbox, task_with
from workers.verify.base import World, verify


@pytest.fixture
def judge() -> Judge:
    """Run one check on a scripted world and return its result."""

    async def one(
        check: dict[str, Any],
        *,
        sandbox: ScriptedSandbox | None = None,
        answer: str = "",
        last_stdout: str | None = None,
    ) -> CheckResult:
        world = World(sandbox or ScriptedSandbox(), answer=answer, last_stdout=last_stdout)
        verdict = await verify(task_with(check), world)
        assert verdict.passed is verdict.checks[0].passed
        return verdict.checks[0]

    return one
