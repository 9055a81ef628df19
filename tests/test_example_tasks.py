"""The tasks.jsonl that the project ships: every line sound, before anything is started."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from common.task import CommandCheck, Task
from workers.scenes.code import CodeConstraints
from workers.verify.base import validate_checks

LINES = (Path(__file__).parents[1] / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
TASKS = [Task.model_validate(json.loads(line)) for line in LINES]


def test_there_are_24_with_names_of_their_own() -> None:
    assert len(TASKS) == len({task.task_id for task in TASKS}) == 24
    difficulties = Counter(task.metadata["difficulty"] for task in TASKS)
    assert difficulties == {"easy": 14, "medium": 6, "hard": 4}


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.task_id)
def test_each_can_be_decided_and_solved(task: Task) -> None:
    assert task.checks and validate_checks(task) == []
    assert task.reference is not None and task.reference.actions
    CodeConstraints.model_validate(task.constraints)
    shown = set(task.tools_to_show())
    used = {action.tool for action in task.reference.actions}
    only = task.constraints["only_expected_tools"]
    assert used <= shown or not only, "the reference needs a tool that is not shown"


def test_hidden_tests_run_isolated_and_end_with_their_own_words() -> None:
    hidden = [check for task in TASKS for check in task.checks if isinstance(check, CommandCheck)]
    assert len(hidden) == 4
    for check in hidden:
        assert check.run.startswith("python3 -I ")
        (source,) = check.files.values()
        assert check.stdout is not None
        marker = check.stdout.removeprefix("^").removesuffix("$")
        assert source.endswith(f"print({marker!r})\n")
