"""Decide whether an episode succeeded: every check of the task, in order, on the world it left."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from common.task import AnswerCheck, CommandCheck, FileCheck, StdoutCheck, Task
from common.task import Check as CheckSpec
from common.trajectory import Verdict
from workers.sandboxes.protocol import SandboxLost, SandboxSpent
from workers.verify.answer import Answer
from workers.verify.command import Command
from workers.verify.file import File
from workers.verify.stdout import Stdout
from workers.verify.world import Check, InvalidTask, World, clip, judged

__all__ = ["Check", "InvalidTask", "World", "checks_of", "validate_checks", "verify"]


async def verify(task: Task, world: World) -> Verdict:
    """Run every check, also after a failed one: the whole picture tells a reviewer more.

    Raises `InvalidTask` where a check cannot be decided as written, and lets `SandboxError`
    through: a world that is gone has no verdict. Only where the agent itself used it up, checks
    that need it fail.
    """
    if not task.checks:
        return Verdict(passed=None, reward=None)
    problems = validate_checks(task)
    if problems:
        raise InvalidTask("; ".join(f"{field}: {reason}" for field, reason in problems))
    results = []
    for check in checks_of(task):
        try:
            async with asyncio.timeout(check.deadline):
                results.append(await check.run(world))
        except SandboxSpent as spent:
            # What the agent left cannot be looked at any more, and that is the agent's doing.
            results.append(judged(check.id, clip(str(spent))))
        except TimeoutError:
            raise SandboxLost(
                f"sandbox {world.sandbox.id} left check {check.id!r} without an answer "
                f"for {check.deadline:.0f} s"
            ) from None
    return Verdict(
        passed=all(result.passed for result in results),
        reward=sum(result.reward for result in results) / len(results),
        checks=tuple(results),
    )


def validate_checks(task: Task) -> list[tuple[str, str]]:
    """Return ``(field, reason)`` for each check that could never be decided, before any costs."""
    checks = checks_of(task)
    found = [
        (f"checks.{place}.{field}", reason)
        for place, check in enumerate(checks)
        for field, reason in check.problems()
    ]
    ids = [check.id for check in checks]
    for place, check_id in enumerate(ids):
        if check_id in ids[:place]:
            found.append((f"checks.{place}.id", f"{check_id!r} names an earlier check too"))
    return found


def checks_of(task: Task) -> Sequence[Check]:
    """Return the task's checks, ready to run; one without an id is named by type and position."""
    return [
        _check(spec.id or f"{spec.type}-{place}", spec)
        for place, spec in enumerate(task.checks, start=1)
    ]


def _check(check_id: str, spec: CheckSpec) -> Check:
    match spec:
        case StdoutCheck():
            return Stdout(check_id, spec)
        case CommandCheck():
            return Command(check_id, spec)
        case FileCheck():
            return File(check_id, spec)
        case AnswerCheck():
            return Answer(check_id, spec)
