"""The agent: our own program inside a sandbox, which runs programs and touches files for us.

It runs on the sandbox's interpreter and is sent there as one piece of source, so its modules keep
to the standard library, the syntax of Python 3.9, and names that are unique among them all.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import resources
from typing import Literal

PARTS = ("limits", "files", "programs", "children", "step", "background", "spare", "serve")
"""In the order in which they need each other; the entry module comes last."""


@cache
def source(entry: Literal["main", "once"] = "main") -> bytes:
    """Return the agent as one module: ``main`` serves as process 1, ``once`` does one step."""
    body: list[ast.stmt] = []
    for part in (*PARTS, entry):
        text = resources.files(__name__).joinpath(f"{part}.py").read_text("utf-8")
        body += [statement for statement in ast.parse(text).body if not _left_out(statement)]
    future = "from __future__ import annotations\n"
    return (future + ast.unparse(ast.Module(body, type_ignores=[])) + "\n").encode()


def _left_out(statement: ast.stmt) -> bool:
    """Say whether a statement makes no sense once all modules are one."""
    if isinstance(statement, ast.ImportFrom):
        module = statement.module or ""
        return module == "__future__" or module.startswith("workers.sandboxes.agent")
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
