"""Worlds at their end: used up by a program, out of time, or with something left running."""

from __future__ import annotations

from functools import partial

import pytest

from common.failures import FailureClass, FailureKind
from tests.helpers import task
from tests.workers.code_worlds import LABELS, blamed, call, python, shell
from tests.workers.code_worlds import metrics as metrics
from tests.workers.code_worlds import reports as reports
from tests.workers.code_worlds import scene as scene
from workers.environment import Scene
from workers.sandboxes.nsjail import cgroups
from workers.sandboxes.spec import Limits

FILL = """
for folder in ("/work", "/tmp"):
    with open(folder + "/fill", "wb", buffering=0) as file:
        for _ in range(63): file.write(bytes(1 << 20))
"""


async def test_a_world_whose_memory_its_programs_used_up_has_a_verdict(scene: Scene) -> None:
    """Files count where a control group does; then not even the agent in the jail can go on."""
    if cgroups.find() is None:
        pytest.skip("this user may not make control groups here")
    checks = [
        {"type": "command", "run": "true"}, {"type": "file", "path": "a"},
        {"type": "stdout", "run": "echo 1", "expected": "1"},
        {"type": "stdout", "expected": "fine"}, {"type": "answer", "expected": "done"},
    ]  # fmt: skip
    small = task(constraints={"memory_mb": 64}, checks=checks)
    async with scene.environment(small, labels=LABELS) as world:
        await world.reset()
        assert (await python(world, "print('fine')")).success
        text = blamed(await python(world, FILL), FailureKind.RUNTIME_ERROR)
        assert text.endswith("[stopped: it used more memory than allowed]")
        for tool, arguments in (
            ("write_file", {"path": "a", "content": "x" * (1 << 20)}),
            ("run_python", {"code": "print(1)"}),
            ("run_shell", {"command": "true"}),
            ("run_shell", {"command": "true", "background": True}),
            ("read_file", {"path": "a"}),
        ):
            output = await call(world, tool, **arguments)
            assert "memory" in blamed(output, FailureKind.RUNTIME_ERROR), tool
        verdict = await world.verify("done", [])
    assert [check.passed for check in verdict.checks] == [False, False, False, True, True]
    assert verdict.passed is False
    assert verdict.reward == pytest.approx(2 / 5)
    assert all("out of memory" in check.detail for check in verdict.checks[:3])


async def test_processor_time_used_up_is_told_as_that(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.scenes.code.Limits", partial(Limits, cpu=1))
    async with scene.environment(task(), labels=LABELS) as world:
        output = await python(world, "print('here', flush=True)\nwhile True: pass")
        assert blamed(output, FailureKind.TIMEOUT) == (
            "here\n[stopped: it used up its processor time]"
        )
        assert output.failure is not None
        assert "processor time" in output.failure.message
        assert output.failure.failure_class is FailureClass.AGENT
        output = await shell(world, "sleep 60", 0.3)
        assert "still running after 0.3 s" in blamed(output, FailureKind.TIMEOUT)


@pytest.mark.parametrize("keep", [False, True])
async def test_what_runs_in_the_background_is_ended_before_checks_look_unless_it_is_the_result(
    scene: Scene, keep: bool
) -> None:
    alive = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q '[s]leep 312'"
    server = task(constraints={"keep_background": keep}, checks=[{"type": "command", "run": alive}])
    async with scene.environment(server, labels=LABELS) as world:
        output = await call(world, "run_shell", command="exec sleep 312", background=True)
        assert output.text == "started in the background; its output is in /tmp/background-1.log"
        assert (await shell(world, alive)).success, "it outlives its step"
        assert (await world.verify("", [])).passed is keep


async def test_background_programs_of_a_used_up_world_are_no_infrastructure_failure(
    scene: Scene,
) -> None:
    if cgroups.find() is None:
        pytest.skip("this user may not make control groups here")
    small = task(
        constraints={"memory_mb": 64}, checks=[{"type": "file", "path": "a", "exists": False}]
    )
    async with scene.environment(small, labels=LABELS) as world:
        await call(world, "run_shell", command="exec sleep 60", background=True)
        blamed(await python(world, FILL), FailureKind.RUNTIME_ERROR)
        await call(world, "write_file", path="a", content="x" * (1 << 20))
        verdict = await world.verify("", [])
    assert verdict.passed is False, "nobody can say that it is not there"
