"""What a program printed, against what it should have printed."""

from __future__ import annotations

import time

import pytest

from tests.workers.verify.scripted import Judge, ScriptedSandbox, ran
from workers.sandboxes.protocol import ExecResult
from workers.verify import patterns


@pytest.mark.parametrize(
    ("match", "expected", "printed", "passed"),
    [
        ("exact", "42", "42\n", True),
        ("exact", "42", "42.0\n", False),
        ("exact", "a\nb", "a \nb\n", False),
        ("lines", "a\nb", "a \r\nb\t\n\n", True),
        ("lines", "a\nb", "b\na\n", False),
        ("contains", "needle", "hay needle hay", True),
        ("contains", "needle", "hay", False),
        ("regex", r"^total: \d+$", "start\ntotal: 12\nend\n", True),
        ("regex", r"^total: \d+$", "total: twelve\n", False),
    ],
)
async def test_the_last_run_counts(
    judge: Judge, match: str, expected: str, printed: str, passed: bool
) -> None:
    check = {"type": "stdout", "expected": expected, "match": match}
    assert (await judge(check, last_stdout=printed)).passed is passed


async def test_without_a_successful_run_it_fails_and_says_so(judge: Judge) -> None:
    result = await judge({"type": "stdout", "expected": "1"}, last_stdout=None)
    assert (result.passed, result.reward) == (False, 0.0)
    assert "no program was run" in result.detail


@pytest.mark.parametrize(
    ("expected", "printed", "detail"),
    [
        ("a\nb\nc", "a\nx\nc", "line 2: expected 'b', got 'x'"),
        ("a\nb", "a", "it ends after line 1; then expected 'b'"),
        ("a", "a\nb", "1 lines expected, but line 2 is 'b'"),
    ],
)
async def test_the_detail_names_the_first_difference(
    judge: Judge, expected: str, printed: str, detail: str
) -> None:
    result = await judge({"type": "stdout", "expected": expected}, last_stdout=printed)
    assert result.detail == detail


async def test_a_long_detail_is_cut(judge: Judge) -> None:
    result = await judge({"type": "stdout", "expected": "a" * 9000}, last_stdout="b" * 9000)
    assert 0 < len(result.detail) <= 500


async def test_a_command_is_run_with_its_input(judge: Judge) -> None:
    def double(sandbox: ScriptedSandbox, command: str, stdin: bytes) -> ExecResult:
        assert command == "python3 double.py"
        return ran(f"{2 * int(stdin)}\n")

    check = {"type": "stdout", "run": "python3 double.py", "stdin": "21", "expected": "42"}
    assert (await judge(check, sandbox=ScriptedSandbox(program=double))).passed


async def test_a_command_that_prints_right_but_fails_is_wrong(judge: Judge) -> None:
    sandbox = ScriptedSandbox(program=lambda *_: ran("42\n", exit_code=1, stderr="boom"))
    result = await judge({"type": "stdout", "run": "x", "expected": "42"}, sandbox=sandbox)
    assert not result.passed
    assert "exit code 1" in result.detail and "boom" in result.detail


async def test_a_command_that_runs_out_of_time_fails_the_check(judge: Judge) -> None:
    sandbox = ScriptedSandbox(program=lambda *_: ran(exit_code=137, status="timeout"))
    result = await judge({"type": "stdout", "run": "x", "expected": ""}, sandbox=sandbox)
    assert not result.passed and "timeout" in result.detail


async def test_a_catastrophic_pattern_ends(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "CPU_SECONDS", 1)
    started = time.monotonic()
    check = {"type": "stdout", "expected": "^(a+)+$", "match": "regex"}
    result = await judge(check, last_stdout="a" * 40 + "b")
    assert not result.passed and "needs more than" in result.detail
    assert time.monotonic() - started < 60
