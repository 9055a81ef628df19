"""`fleet schema`: the JSON Schemas of what the fleet reads and writes."""

from __future__ import annotations

from typing import Annotated

import orjson
import typer

from common.model import Contract
from common.review import Review
from common.task import Task
from common.trajectory import Step, Trajectory, Verdict
from fleet.context import fail


def schema(
    name: Annotated[
        str | None, typer.Argument(help="task, trajectory, step, verdict, review")
    ] = None,
) -> None:
    """Print the JSON Schemas of what the fleet reads and writes."""
    models: dict[str, type[Contract]] = {
        "task": Task, "trajectory": Trajectory, "step": Step, "verdict": Verdict, "review": Review,
    }  # fmt: skip
    if name is not None and name not in models:
        fail(f"no schema {name!r}; there is: {', '.join(models)}", 2)
    wanted = {name: models[name]} if name else models
    # What is read has no computed fields; what is written has.
    schemas = {
        n: m.model_json_schema(mode="validation" if n == "task" else "serialization")
        for n, m in wanted.items()
    }
    data = schemas[name] if name else schemas
    print(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode())  # noqa: T201
