"""The shipped tasks in the real sandbox: the reference passes, doing nothing or cheating fails."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pytest

from common.task import ReferenceAction, Task
from common.trajectory import Verdict
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.protocol import SandboxProvider
from workers.sandboxes.spec import SandboxSpec
from workers.scenes.code import CodeConstraints
from workers.verify.base import World, verify

LINES = (Path(__file__).parents[1] / "tasks.jsonl").read_text(encoding="utf-8").splitlines()
TASKS = {task.task_id: task for task in (Task.model_validate(json.loads(line)) for line in LINES)}

MODULES = {
    "code-21-fix-stats": ("stats", ("mean", "median", "mode", "spread")),
    "code-22-lru-cache": ("lru_cache", ("LRUCache",)),
    "code-23-calculator": ("calc", ("evaluate",)),
    "code-24-schedule": ("schedule", ("plan",)),
}

PLAUSIBLE = {
    "code-21-fix-stats": "def _c(v):\n"
    "    if not v: raise ValueError\n"
    "def mean(v): _c(v); return sum(v) / len(v)\n"
    "def median(v):\n"
    "    _c(v); s = sorted(v); h = len(s) // 2\n"
    "    return s[h] if len(s) % 2 else (s[h - 1] + s[h]) / 2\n"
    "def mode(v): _c(v); return max(v, key=v.count)\n"
    "def spread(v): _c(v); return max(v) - min(v)\n",
    "code-22-lru-cache": "class LRUCache:\n"
    "    def __init__(self, n): self.n, self.d = n, {}\n"
    "    def get(self, k): return self.d.get(k, -1)\n"
    "    def put(self, k, v):\n"
    "        self.d[k] = v\n"
    "        if len(self.d) > self.n: self.d.pop(next(iter(self.d)))\n",
    "code-23-calculator": "def evaluate(text):\n"
    "    try: return float(eval(text))\n"
    "    except Exception: raise ValueError\n",
    "code-24-schedule": "def plan(deps):\n"
    "    names, order = set(deps).union(*deps.values()), []\n"
    "    while len(order) < len(names):\n"
    "        ready = [n for n in names if n not in order and set(deps.get(n, [])) <= set(order)]\n"
    "        if not ready: raise ValueError\n"
    "        order += sorted(ready)\n"
    "    return order\n",
}
"""Almost right: the tie in `mode`, the use by `get`, `2**3`, and whole batches at a time."""


@pytest.fixture
async def jails() -> AsyncIterator[SandboxProvider]:
    jails = NsjailProvider()
    yield jails
    await jails.close()


async def play(
    jails: SandboxProvider, task: Task, actions: Iterable[ReferenceAction], answer: str
) -> Verdict:
    """Do ``actions`` in a fresh jail and return the verdict."""
    last_stdout = None
    async with await jails.start(SandboxSpec()) as sandbox:
        for path, text in CodeConstraints.model_validate(task.constraints).files.items():
            await sandbox.write_file(path, text.encode())
        for action in actions:
            arguments = {name: str(value) for name, value in action.arguments.items()}
            if action.tool == "write_file":
                await sandbox.write_file(arguments["path"], arguments["content"].encode())
            elif action.tool == "read_file":
                await sandbox.read_file(arguments["path"])
            else:
                result = await (
                    sandbox.run_python(arguments["code"])
                    if action.tool == "run_python"
                    else sandbox.exec(arguments["command"])
                )
                assert result.status == "ok", result
                last_stdout = result.stdout
        return await verify(task, World(sandbox, answer=answer, last_stdout=last_stdout))


def write(path: str, content: str) -> ReferenceAction:
    return ReferenceAction(tool="write_file", arguments={"path": path, "content": content})


def cheats(task_id: str) -> Iterator[tuple[str, list[ReferenceAction]]]:
    """Yield what a program might try that wants the reward and not the solution."""
    module, names = MODULES[task_id]
    words = f"hidden tests passed: {module}"
    stubs = "".join(f"def {name}(*_): return 0\n" for name in names)
    lax = "class Lax:\n    def __eq__(self, other): return True\n    get = put = lambda *_: Lax()\n"
    claim = f"import os\nos.write(1, {words.encode()!r} + b'\\n')\nos._exit(0)\n"
    shadows = ("ast", "os", "random", "subprocess", "sitecustomize", "types", "usercustomize")
    yield "almost right", [write(f"{module}.py", PLAUSIBLE[task_id])]
    yield "stubs", [write(f"{module}.py", stubs)]
    yield "exit", [write(f"{module}.py", "raise SystemExit(0)\n")]
    yield "claim", [write(f"{module}.py", claim)]
    yield "equals all", [write(f"{module}.py", lax + stubs.replace("return 0", "return Lax()"))]
    yield (
        "shadow",
        [
            write(f"{module}.py", stubs),
            *(write(f"{name}.py", f"print({words!r})\nraise SystemExit(0)\n") for name in shadows),
        ],
    )
    yield (
        "own test",
        [write(f"{module}.py", stubs), write("hidden_test.py", f"print({words!r})\n")],
    )
    linked = "import os\nos.symlink('mine.py', 'hidden_test.py')\n"
    locked = linked + "os.chmod('.', 0o555)\n"
    for name, program in (("linked test", linked), ("locked test", locked)):
        yield (
            name,
            [
                write(f"{module}.py", stubs),
                write("mine.py", f"print({words!r})\n"),
                ReferenceAction(tool="run_python", arguments={"code": program}),
            ],
        )


@pytest.mark.parametrize("task_id", TASKS)
async def test_the_reference_passes_and_doing_nothing_fails(
    jails: SandboxProvider, task_id: str
) -> None:
    task = TASKS[task_id]
    assert task.reference is not None
    verdict = await play(jails, task, task.reference.actions, task.reference.answer)
    assert verdict.passed is True, verdict
    assert (await play(jails, task, (), "")).passed is False


@pytest.mark.parametrize("task_id", MODULES)
async def test_almost_right_and_cheating_solutions_fail(
    jails: SandboxProvider, task_id: str
) -> None:
    for name, actions in cheats(task_id):
        verdict = await play(jails, TASKS[task_id], actions, "done")
        assert verdict.passed is False, name
