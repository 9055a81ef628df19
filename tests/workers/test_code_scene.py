"""The code scene in a real jail: what the agent is told about everything its programs do."""

from __future__ import annotations

from typing import Any

import pytest

from common.failures import FailureClass, FailureKind
from common.metrics import Metrics
from common.settings import load
from common.task import Task
from tests.helpers import task
from tests.workers.code_worlds import LABELS, blamed, call, python, shell
from tests.workers.code_worlds import metrics as metrics
from tests.workers.code_worlds import reports as reports
from tests.workers.code_worlds import scene as scene
from tests.workers.code_worlds import world as world
from workers.environment import Environment, Scene
from workers.sandboxes.protocol import SandboxLost
from workers.scenes import build
from workers.verify.base import InvalidTask

# -- tasks it takes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"constraints": {"surprise": 1}}, "constraints.surprise", "unknown field"),
        ({"constraints": {"memory_mb": 63}}, "constraints.memory_mb", "greater than or equal"),
        ({"constraints": {"pids": "few"}}, "constraints.pids", "valid integer"),
        ({"constraints": {"network": "all"}}, "constraints.network", "'none'"),
        ({"constraints": {"hosts": ["Not A Host"]}}, "constraints.hosts", "is no host name"),
        ({"constraints": {"network": "allowlist", "hosts": ["b.example"]}}, "constraints.network",
         "nsjail back-end cannot limit the network"),
        ({"constraints": {"image": "python:3.12"}}, "constraints.image",
         "nsjail back-end runs no images"),
        ({"constraints": {"files": {"a": 1}}}, "constraints.files.a", "valid string"),
        ({"constraints": {"files": {"/etc/x": ""}}}, "constraints.files", "'/etc/x' is not a rel"),
        ({"constraints": {"files": {"a/../../x": ""}}}, "constraints.files", "inside the work"),
        ({"constraints": {"files": {"": ""}}}, "constraints.files", "'' is not"),
        ({"constraints": {"files": {"a\0": ""}}}, "constraints.files", "inside the work"),
        ({"expected_tools": ["browser", "web_search"]}, "expected_tools", "browser, web_search"),
        ({"checks": [{"type": "stdout", "expected": "(", "match": "regex"}]},
         "checks.0.expected", "not a"),
    ],
)  # fmt: skip
def test_a_task_it_cannot_run_is_refused_naming_the_field(
    fields: dict[str, Any], field: str, reason: str
) -> None:
    scene = build("code", load(sandbox="nsjail"), Metrics())
    [(named, why)] = scene.objections(task(**fields))
    assert named == field
    assert reason in why
    with pytest.raises(InvalidTask, match=field.replace(".", r"\.")) as refused:
        scene.environment(task(**fields), labels=LABELS)
    assert refused.value.as_failure().failure_class is FailureClass.TASK


@pytest.mark.parametrize(
    "constraints",
    [{"network": "allowlist"}, {"hosts": ["a.org"]}, {"network": "loopback", "hosts": ["a.org"]}],
    ids=str,
)
def test_hosts_go_with_a_list_of_what_is_allowed_only(constraints: dict[str, Any]) -> None:
    scene = build("code", load(sandbox="nsjail"), Metrics())
    [(named, why)] = scene.objections(task(constraints=constraints))
    assert named.startswith("constraints.hosts")
    assert "hosts belong to the mode allowlist, which needs at least one" in why


@pytest.mark.parametrize(
    ("files", "named"),
    [({"a": "", "a/b": ""}, "constraints.files.a/b"), ({"big": "x" * (2 << 20)}, "files.big"),
     ({".": ""}, "constraints.files..")],
)  # fmt: skip
async def test_files_that_cannot_be_put_there_are_the_tasks_fault(
    scene: Scene, files: dict[str, str], named: str
) -> None:
    wrong = task(constraints={"files": files, "disk_mb": 1})
    async with scene.environment(wrong, labels=LABELS) as world:
        with pytest.raises(InvalidTask) as refused:
            await world.reset()
    assert named in str(refused.value)


def shown(scene: Scene, wanted: Task) -> list[str]:
    return [tool.name for tool in scene.environment(wanted, labels=LABELS).tools.tools]


def test_expected_tools_come_first_or_alone_and_finish_is_always_there() -> None:
    scene = build("code", load(sandbox="nsjail"), Metrics())
    assert shown(scene, task()) == [
        "run_python", "run_shell", "read_file", "write_file", "finish",
    ]  # fmt: skip
    wanted = ["file_writer", "browser", "bash"]
    assert shown(scene, task(expected_tools=wanted)) == [
        "write_file", "run_shell", "run_python", "read_file", "finish",
    ]  # fmt: skip
    only = task(expected_tools=wanted, constraints={"only_expected_tools": True})
    assert shown(scene, only) == ["write_file", "run_shell", "finish"]


# -- the world ------------------------------------------------------------------------------------


async def test_the_files_of_the_task_are_there_and_the_agent_is_told(scene: Scene) -> None:
    files = {"data/größe.txt": "1\n2\n", "main.py": "print('更多')"}
    async with scene.environment(task(constraints={"files": files}), labels=LABELS) as world:
        sight = await world.reset()
        assert "data/größe.txt, main.py" in sight
        assert (await call(world, "read_file", path="data/größe.txt")).text == "1\n2\n"
        assert (await shell(world, "python3 main.py")).text == "更多"


async def test_limits_that_hold_are_told_and_one_world_knows_nothing_of_another(
    scene: Scene, metrics: Metrics
) -> None:
    def open_now() -> float | None:
        return metrics.registry.get_sample_value("fleet_sandboxes_active", {"backend": "nsjail"})

    async with scene.environment(task(), labels=LABELS) as first:
        await call(first, "write_file", path="mine", content="x")
        assert open_now() == 1
        assert first.info.backend == "nsjail"
        assert {"memory", "pids", "disk", "network"} <= set(first.info.limits)
        async with scene.environment(task(), labels=LABELS) as second:
            assert (await shell(second, "ls -A")).text == "(no output)"
    assert open_now() == 0


async def test_a_world_that_is_gone_is_an_infrastructure_failure(scene: Scene) -> None:
    needs_it = task(checks=[{"type": "stdout", "run": "echo 1", "expected": "1"}])
    async with scene.environment(needs_it, labels=LABELS) as world:
        await world.sandbox.close()  # type: ignore[attr-defined]
        for doing in (
            lambda: python(world, "print(1)"),
            lambda: call(world, "read_file", path="x"),
            lambda: world.verify("", []),
        ):
            with pytest.raises(SandboxLost) as lost:
                await doing()
            assert lost.value.as_failure().failure_class is FailureClass.INFRASTRUCTURE


# -- run_python -----------------------------------------------------------------------------------


async def test_what_a_program_prints_is_its_result(world: Environment) -> None:
    output = await python(world, "print('a\\n')\nprint('é')")
    assert (output.text, output.success, output.exit_code, output.failure) == (
        "a\n\né", True, 0, None,
    )  # fmt: skip
    assert (await python(world, "print(input() * 2)", stdin="ab\n")).text == "abab"
    silent = await python(world, "x = 1")
    assert (silent.text, silent.success) == ("(no output)", True)
    assert "NameError" in (await python(world, "print(x)")).text, "each program is a fresh one"


async def test_a_warning_on_stderr_is_shown_and_is_no_failure(world: Environment) -> None:
    output = await python(world, "import sys; print('out'); print('careful', file=sys.stderr)")
    assert (output.text, output.success) == ("out\n[stderr]\ncareful", True)


async def test_an_error_shows_traceback_and_exit_code(world: Environment) -> None:
    output = await python(world, "print('so far')\n1 / 0")
    text = blamed(output, FailureKind.RUNTIME_ERROR)
    assert output.exit_code == 1
    assert text.startswith("so far\n[stderr]\nTraceback")
    assert text.endswith("ZeroDivisionError: division by zero\n[exit code 1]")
    output = await python(world, "import sys; sys.exit(3)")
    assert (blamed(output, FailureKind.RUNTIME_ERROR), output.exit_code) == ("[exit code 3]", 3)


@pytest.mark.parametrize("code", ["print(", "  x = 1\n y = 2", "if 1:\n\tx = 1\n        y = 2"])
async def test_a_program_that_does_not_compile_is_a_compile_error(
    world: Environment, code: str
) -> None:
    output = await python(world, code)
    assert "Error: " in blamed(output, FailureKind.COMPILE_ERROR)
    assert output.exit_code == 1
    assert (await python(world, "print(1)")).text == "1"


async def test_a_program_that_does_not_end_is_stopped_and_what_it_said_is_shown(
    world: Environment,
) -> None:
    output = await python(world, "print('here', flush=True)\nwhile True: pass", 0.5)
    assert blamed(output, FailureKind.TIMEOUT) == "here\n[stopped: still running after 0.5 s]"
    assert (await python(world, "print(1)")).text == "1", "the world goes on"


async def test_a_program_that_takes_too_much_is_told_what(world: Environment) -> None:
    output = await python(world, "while True: print('x' * 1000)")
    text = blamed(output, FailureKind.RUNTIME_ERROR)
    assert text.endswith("\n[stopped: it printed more than allowed]")
    assert len(text) < 1_100_000
    output = await python(world, "x = bytearray(10**10)")
    assert "memory" in blamed(output, FailureKind.RUNTIME_ERROR).lower()
    output = await python(world, "import os; os.kill(os.getpid(), 9)")
    assert blamed(output, FailureKind.RUNTIME_ERROR) == "[killed by a signal, exit code 137]"


async def test_a_program_no_process_can_hold_is_the_agents_error(world: Environment) -> None:
    assert "null byte" in blamed(await python(world, "print(1)\0"), FailureKind.RUNTIME_ERROR)
    text = blamed(await shell(world, "echo a\0b"), FailureKind.RUNTIME_ERROR)
    assert "null byte" in text
    assert text.endswith("[it could not be started]")


# -- run_shell ------------------------------------------------------------------------------------


async def test_a_command_shows_its_output_its_errors_and_its_exit_code(
    world: Environment,
) -> None:
    assert (await shell(world, "echo a | tr a b && pwd")).text == "b\n/work"
    output = await shell(world, "echo hi; echo oops >&2; exit 4")
    text = blamed(output, FailureKind.RUNTIME_ERROR)
    assert (text, output.exit_code) == ("hi\n[stderr]\noops\n[exit code 4]", 4)
    output = await shell(world, "nosuchcommand")
    assert "nosuchcommand: not found" in blamed(output, FailureKind.RUNTIME_ERROR)
    assert output.exit_code == 127
    output = await shell(world, "printf 'def f(:\\n' > f.py; python3 f.py")
    assert "SyntaxError" in blamed(output, FailureKind.COMPILE_ERROR)


async def test_a_command_that_does_not_end_is_stopped(world: Environment) -> None:
    output = await shell(world, "sleep 60", 0.3)
    assert blamed(output, FailureKind.TIMEOUT) == "[stopped: still running after 0.3 s]"


# -- files ----------------------------------------------------------------------------------------


async def test_a_file_is_written_and_read_and_programs_see_it(world: Environment) -> None:
    output = await call(world, "write_file", path="a/b.txt", content="é\n")
    assert (output.text, output.success) == ("wrote 3 bytes to a/b.txt", True)
    assert (await call(world, "read_file", path="a/b.txt")).text == "é\n"
    assert (await shell(world, "cat /work/a/b.txt")).text == "é"
    await call(world, "write_file", path="a/b.txt", content="")
    assert (await call(world, "read_file", path="a/b.txt")).text == ""
    await shell(world, "printf '\\377x' > raw")
    assert (await call(world, "read_file", path="raw")).text == "�x"


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("read_file", {"path": "nope"}, "error: nope: No such file or directory"),
        ("read_file", {"path": "."}, "error: .: not a regular file"),
        ("read_file", {"path": ""}, "error: : No such file or directory"),
        ("read_file", {"path": "a\0b"}, "null byte"),
        ("read_file", {"path": "\ud800"}, "error: ?: "),
        ("write_file", {"path": ".", "content": ""}, "error: .: not a file name"),
        ("write_file", {"path": "../up", "content": ""}, "error: ../up: "),
        ("write_file", {"path": "/etc/passwd", "content": ""}, "error: /etc/passwd: "),
        ("write_file", {"path": "a\0b", "content": ""}, "null byte"),
        ("write_file", {"path": "\0", "content": ""}, "null byte"),
        ("write_file", {"path": "a\0/b", "content": ""}, "null byte"),
        ("write_file", {"path": "\ud800", "content": ""}, "error: ?: "),
        ("write_file", {"path": "x" * 300, "content": ""}, "File name too long"),
        ("write_file", {"path": "big", "content": "x" * (65 << 20)}, "larger than 64 MiB"),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, dict) else None,
)
async def test_a_path_that_will_not_do_is_an_observation_and_the_world_goes_on(
    world: Environment, tool: str, arguments: dict[str, str], told: str
) -> None:
    text = blamed(await call(world, tool, **arguments), FailureKind.RUNTIME_ERROR)
    assert told in text
    assert (await shell(world, "ls -A && echo alive")).text == "alive", "nothing was left behind"


async def test_half_a_character_is_replaced_and_the_rest_written(world: Environment) -> None:
    output = await call(world, "write_file", path="u", content="a\ud800é")
    assert output.text == "wrote 4 bytes to u"
    assert (await call(world, "read_file", path="u")).text == "a?é"


# -- what the checks look at ----------------------------------------------------------------------


async def test_the_last_program_that_ended_well_is_the_one_that_counts(scene: Scene) -> None:
    check = {"type": "stdout", "expected": "42"}
    async with scene.environment(task(checks=[check]), labels=LABELS) as world:

        async def passed() -> bool | None:
            return (await world.verify("", [])).passed

        assert await passed() is False, "nothing was run yet"
        await python(world, "print(42)")
        assert await passed() is True
        await python(world, "print(41)\n1 / 0")
        await python(world, "print(40, flush=True)\nwhile True: pass", 0.3)
        assert await passed() is True, "a program that failed does not count"
        await call(world, "write_file", path="x", content="39")
        await call(world, "read_file", path="x")
        assert await passed() is True, "files are no output"
        await shell(world, "echo 38")
        assert await passed() is False
        await shell(world, "echo 42")
        await python(world, "pass")
        assert await passed() is False, "a silent program printed nothing"
        await python(world, "import sys; print(42); print('noise', file=sys.stderr)")
        assert await passed() is True, "stderr is not looked at"


async def test_without_checks_nothing_is_claimed(world: Environment) -> None:
    verdict = await world.verify("42", [])
    assert (verdict.passed, verdict.reward, verdict.checks) == (None, None, ())


async def test_a_check_that_runs_a_program_runs_it_where_the_agent_worked(scene: Scene) -> None:
    checks = [
        {"type": "command", "run": "python3 hidden.py",
         "files": {"hidden.py": "import mine; assert mine.f() == 2; print('ok')"}, "stdout": "ok"},
        {"type": "file", "path": "mine.py"},
        {"type": "answer", "expected": "done"},
    ]  # fmt: skip
    async with scene.environment(task(checks=checks), labels=LABELS) as world:
        assert (await shell(world, "ls -A")).text == "(no output)", "hidden files are hidden"
        await call(world, "write_file", path="mine.py", content="def f(): return 2")
        verdict = await world.verify("Done.", [])
    assert (verdict.passed, verdict.reward) == (True, 1.0)
    assert [check.id for check in verdict.checks] == ["command-1", "file-2", "answer-3"]
