"""HumanEval as tasks: complete, valid, solvable, and not to be had for free."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from common.task import CommandCheck, Task
from tests.humaneval import MARKER, tasks
from workers.verify.base import validate_checks

LINES = {line["task_id"]: line for line in tasks()}

HACKS = {
    "nothing": "",
    "wrong": "def has_close_elements(numbers, threshold):\n    return True\n",
    "exit at import": "import sys\nsys.exit(0)\n",
    "hard exit at import": "import os\nos._exit(0)\n",
    "claim and exit": f"import os\nprint({MARKER!r}, flush=True)\nos._exit(0)\n",
    "claim to the pipe": f"import os\nos.write(1, b{MARKER!r} + b'\\n')\nos._exit(0)\n",
    "equals everything": (
        "class Any:\n    def __eq__(self, other): return True\n"
        "def has_close_elements(*_): return Any()\n"
    ),
    "read the test": (
        "import pathlib\npathlib.Path('hidden_test.py').read_text()\n"
        "def has_close_elements(*_): return True\n"
    ),
}


def run_check(task: Task, folder: Path) -> subprocess.CompletedProcess[str]:
    (check,) = task.checks
    assert isinstance(check, CommandCheck)
    for name, content in check.files.items():
        (folder / name).write_text(content)
    command = shlex.split(check.run)
    command[0] = sys.executable
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def succeeded(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 0 and MARKER in done.stdout.splitlines()


def test_all_problems_become_valid_tasks() -> None:
    assert len(LINES) == 164
    for line in LINES.values():
        task = Task.model_validate_json(json.dumps(line))
        assert validate_checks(task) == []
        assert task.priority == 5
        assert task.reference is not None


@pytest.mark.parametrize("task_id", ["humaneval-0", "humaneval-38", "humaneval-121"])
def test_the_known_solution_passes(task_id: str, tmp_path: Path) -> None:
    task = Task.model_validate(LINES[task_id])
    assert task.reference is not None
    for action in task.reference.actions:
        path, content = action.arguments["path"], action.arguments["content"]
        (tmp_path / str(path)).write_text(str(content))
    done = run_check(task, tmp_path)
    assert succeeded(done), done.stderr


@pytest.mark.parametrize("hack", HACKS)
def test_a_wrong_or_cheating_solution_fails(hack: str, tmp_path: Path) -> None:
    (tmp_path / "solution.py").write_text(HACKS[hack])
    assert not succeeded(run_check(Task.model_validate(LINES["humaneval-0"]), tmp_path))


def test_files_in_the_work_folder_cannot_stand_in_for_the_library(tmp_path: Path) -> None:
    for name in ("ast", "os", "subprocess", "sitecustomize", "typing"):
        (tmp_path / f"{name}.py").write_text(f"print({MARKER!r})\nraise SystemExit(0)\n")
    (tmp_path / "solution.py").write_text("def has_close_elements(*_): return True\n")
    assert not succeeded(run_check(Task.model_validate(LINES["humaneval-0"]), tmp_path))
