"""How single checks add up to a verdict, and what is no verdict at all."""

from __future__ import annotations

import asyncio

import pytest

from common.failures import FailureKind
from tests.workers.verify.scripted import ScriptedSandbox, task_with
from workers.sandboxes.protocol import ExecResult, SandboxLost, SandboxSpent
from workers.verify import stdout as stdout_check
from workers.verify.base import InvalidTask, World, validate_checks, verify


async def test_a_task_without_checks_is_unverified_not_failed() -> None:
    verdict = await verify(task_with(), World(ScriptedSandbox(), answer="anything"))
    assert (verdict.passed, verdict.reward, verdict.checks) == (None, None, ())


async def test_every_check_runs_even_after_one_failed() -> None:
    task = task_with(
        {"type": "answer", "expected": "no"},
        {"type": "answer", "expected": "yes"},
        {"type": "file", "path": "missing.txt", "id": "the file"},
    )
    verdict = await verify(task, World(ScriptedSandbox(), answer="yes"))
    assert [result.passed for result in verdict.checks] == [False, True, False]
    assert [result.id for result in verdict.checks] == ["answer-1", "answer-2", "the file"]
    assert verdict.passed is False
    assert verdict.reward == pytest.approx(1 / 3)


async def test_all_checks_passed_is_a_full_reward() -> None:
    task = task_with({"type": "answer", "expected": "yes"})
    verdict = await verify(task, World(ScriptedSandbox(), answer="Yes."))
    assert (verdict.passed, verdict.reward) == (True, 1.0)


async def test_a_lost_sandbox_is_no_verdict() -> None:
    def gone(sandbox: ScriptedSandbox, command: str, stdin: bytes) -> ExecResult:
        raise SandboxLost("the jail was killed")

    task = task_with({"type": "command", "run": "true"})
    with pytest.raises(SandboxLost):
        await verify(task, World(ScriptedSandbox(program=gone), answer=""))


async def test_checks_of_a_world_the_agent_used_up_fail_and_others_still_decide() -> None:
    class Spent(ScriptedSandbox):
        async def exec(self, *args: object, **kwargs: object) -> ExecResult:
            raise SandboxSpent("sandbox 1 ran out of memory and is gone: " + "x" * 9000)

        read_file = list_dir = write_file = exec  # type: ignore[assignment]

    task = task_with(
        {"type": "command", "run": "true"},
        {"type": "file", "path": "a.txt"},
        {"type": "stdout", "run": "true", "expected": ""},
        {"type": "stdout", "expected": "1"},
        {"type": "answer", "expected": "yes"},
    )
    verdict = await verify(task, World(Spent(), answer="yes", last_stdout="1\n"))
    assert [result.passed for result in verdict.checks] == [False, False, False, True, True]
    assert verdict.passed is False
    assert verdict.reward == pytest.approx(2 / 5)
    for result in verdict.checks[:3]:
        assert "ran out of memory" in result.detail
        assert len(result.detail) <= 500


async def test_a_silent_sandbox_is_lost_not_a_failed_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(ScriptedSandbox):
        async def exec(self, *args: object, **kwargs: object) -> ExecResult:
            await asyncio.Event().wait()
            raise AssertionError

    monkeypatch.setattr(stdout_check, "GRACE", 0.01)
    task = task_with({"type": "stdout", "expected": "1", "run": "true", "timeout": 0.01})
    with pytest.raises(SandboxLost, match="stdout-1"):
        await verify(task, World(Silent(), answer=""))


@pytest.mark.parametrize(
    ("check", "field"),
    [
        ({"type": "stdout", "expected": "(", "match": "regex"}, "checks.0.expected"),
        ({"type": "stdout", "expected": "", "match": "contains"}, "checks.0.expected"),
        ({"type": "stdout", "expected": "1", "stdin": "x"}, "checks.0.stdin"),
        ({"type": "command", "run": "x", "stdout": "[a"}, "checks.0.stdout"),
        ({"type": "command", "run": "x", "files": {"../a": ""}}, "checks.0.files"),
        ({"type": "command", "run": "x", "files": {"/etc/a": ""}}, "checks.0.files"),
        ({"type": "file", "path": "a", "expected": "*", "match": "regex"}, "checks.0.expected"),
        ({"type": "file", "path": "a", "expected": "{", "match": "json"}, "checks.0.expected"),
        ({"type": "file", "path": "a", "exists": False, "expected": "1"}, "checks.0.exists"),
        ({"type": "answer", "expected": "(", "match": "regex"}, "checks.0.expected"),
        (
            {"type": "answer", "expected": "a", "match": "regex", "aliases": [")"]},
            "checks.0.aliases.0",
        ),
        ({"type": "answer", "expected": "many", "match": "numeric"}, "checks.0.expected"),
        ({"type": "answer", "expected": ["a"], "match": "exact"}, "checks.0.expected"),
        ({"type": "answer", "expected": [], "match": "set"}, "checks.0.expected"),
        ({"type": "answer", "expected": " "}, "checks.0.expected"),
    ],
)
async def test_a_check_that_cannot_be_decided_is_found_before_anything_runs(
    check: dict[str, object], field: str
) -> None:
    task = task_with(check)
    assert [found for found, _ in validate_checks(task)] == [field]
    with pytest.raises(InvalidTask) as caught:
        await verify(task, World(ScriptedSandbox(), answer="a"))
    assert caught.value.kind is FailureKind.INVALID_TASK


def test_two_checks_with_one_name_are_refused() -> None:
    task = task_with(
        {"type": "answer", "expected": "a", "id": "x"},
        {"type": "answer", "expected": "b", "id": "x"},
    )
    assert validate_checks(task) == [("checks.1.id", "'x' names an earlier check too")]


def test_sound_checks_have_no_problems() -> None:
    task = task_with(
        {"type": "stdout", "expected": "1"},
        {"type": "command", "run": "x", "stdout": "^done$", "files": {"tests/a.py": ""}},
        {"type": "file", "path": "a", "expected": "[1]", "match": "json"},
        {"type": "answer", "expected": 3, "match": "numeric", "aliases": ["3.0"]},
    )
    assert validate_checks(task) == []
