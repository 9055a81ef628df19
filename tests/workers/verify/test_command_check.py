"""Hidden tests: put in late, taken out again, and not to be fooled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.workers.verify.scripted import Judge, ScriptedSandbox, ran
from workers.sandboxes.protocol import ExecResult

HIDDEN = {
    "type": "command",
    "run": "python3 -I hidden.py",
    "files": {"hidden.py": "the real test"},
    "stdout": "^ALL GOOD$",
}


def program(result: ExecResult) -> Callable[..., ExecResult]:
    return lambda *_: result


async def test_exit_code_and_marker_together_pass(judge: Judge) -> None:
    sandbox = ScriptedSandbox(program=program(ran("1 ok\nALL GOOD\n")))
    assert (await judge(HIDDEN, sandbox=sandbox)).passed


@pytest.mark.parametrize(
    ("result", "detail"),
    [
        (ran(""), "'^ALL GOOD$'"),
        (ran("ALL GOOD", exit_code=1, stderr="Traceback\nAssertionError"), "AssertionError"),
        (ran("ALL GOOD", exit_code=137, status="timeout"), "timeout"),
        (ran("ALL GOOD", exit_code=137, status="oom"), "oom"),
        (ran("", exit_code=None, status="error"), "exit code None"),
    ],
)
async def test_anything_less_fails_and_says_why(
    judge: Judge, result: ExecResult, detail: str
) -> None:
    verdict = await judge(HIDDEN, sandbox=ScriptedSandbox(program=program(result)))
    assert not verdict.passed and detail in verdict.detail


async def test_another_exit_code_can_be_the_right_one(judge: Judge) -> None:
    sandbox = ScriptedSandbox(program=program(ran(exit_code=3)))
    assert (await judge({"type": "command", "run": "x", "exit_code": 3}, sandbox=sandbox)).passed


async def test_hidden_files_replace_what_the_agent_left_and_leave_again(judge: Judge) -> None:
    seen: list[bytes] = []

    def look(sandbox: ScriptedSandbox, command: str, stdin: bytes) -> ExecResult:
        seen.append(sandbox.files["hidden.py"])
        return ran("ALL GOOD")

    sandbox = ScriptedSandbox({"hidden.py": "print('ALL GOOD')", "solution.py": "x"}, look)
    assert (await judge(HIDDEN, sandbox=sandbox)).passed
    assert seen == [b"the real test"]
    assert sandbox.commands[0] == ["rm", "-rf", "--", "hidden.py"], "never write through a link"
    assert sandbox.files == {"solution.py": b"x"}


@pytest.mark.parametrize("obstacle", ["unwritable", "immovable"])
async def test_an_agent_that_keeps_hidden_files_out_fails(judge: Judge, obstacle: str) -> None:
    sandbox = ScriptedSandbox(program=program(ran("ALL GOOD")))
    setattr(sandbox, obstacle, ["hidden.py"])
    verdict = await judge(HIDDEN, sandbox=sandbox)
    assert not verdict.passed and "cannot be put in place" in verdict.detail
