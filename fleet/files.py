"""`fleet submit` and `fleet validate`: what is done with a whole tasks file at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from common.failures import ConfigurationError
from common.queue.connection import Server
from common.queue.scene_queue import NewTask, SceneQueue
from common.task import Assignment, Task
from fleet.context import Output, clean, err, fail, out, settings_for, with_server
from fleet.tasksfile import read_tasks


def submit(file: Path, output: Output = None) -> None:
    """Queue every task of a file now, without following it. A known task_id is not queued again."""
    settings = settings_for(output)
    counts = {"queued": 0, "duplicate": 0, "rejected": 0}

    async def send(server: Server) -> None:
        await server.check()
        queues: dict[str, SceneQueue] = {}
        for line in read_tasks(file, limit=settings.max_line_bytes):
            if line.task is None:
                counts["rejected"] += 1
                for field, reason in line.problems:
                    err.print(clean(f"{file}:{line.number}: {field}: {reason}", style="red"))
                continue
            scene = line.task.scene
            queue = queues.setdefault(
                scene, SceneQueue(server, scene, ledger_ttl=settings.ledger_ttl)
            )
            samples = [Assignment(task=line.task, sample=n) for n in range(line.task.samples)]
            reply = await queue.publish([NewTask.of(samples)])
            counts["queued" if reply.published else "duplicate"] += 1
            if not reply.published:
                err.print(Text(f"{file}:{line.number}: duplicate task_id {line.task.task_id}"))

    try:
        with_server(settings, send)
    except OSError as error:
        fail(f"{file}: {error.strerror or error}", 2)
    out.print(", ".join(f"{n} {what}" for what, n in counts.items()))
    if counts["rejected"]:
        raise typer.Exit(1)


def validate(
    file: Path,
    concurrency: Annotated[int, typer.Option(min=1, help="Tasks at once.")] = 4,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what is not proven.")] = False,
) -> None:
    """Prove every task in the real sandbox: its reference must pass, doing nothing must fail."""
    from fleet.validate import Proof, prove

    settings = settings_for(None)
    tasks: list[Task] = []
    wrong: list[tuple[str, str]] = []
    ids: dict[str, int] = {}
    try:
        for line in read_tasks(file, limit=settings.max_line_bytes):
            where = f"line {line.number}"
            if line.task is None:
                wrong += [(where, f"{field}: {reason}") for field, reason in line.problems]
            elif line.task.task_id in ids:
                first = ids[line.task.task_id]
                wrong.append((where, f"task_id: {line.task.task_id!r} is also line {first}"))
            else:
                ids[line.task.task_id] = line.number
                tasks.append(line.task)
    except OSError as error:
        fail(f"{file}: {error.strerror or error}", 2)
    with Progress(
        SpinnerColumn(), TextColumn("{task.completed}/{task.total} tasks"), console=err,
        transient=True,
    ) as bar:  # fmt: skip
        job = bar.add_task("", total=len(tasks))

        def told(_: Proof) -> None:
            bar.advance(job)

        try:
            proofs = asyncio.run(prove(tasks, settings, concurrency=concurrency, told=told))
        except ConfigurationError as error:
            fail(str(error), 78)
    shown = Table("task", "result", "seconds", "why")
    styles = {"proven": "green", "broken": "red", "unproven": "yellow"}
    for where, reason in wrong:
        shown.add_row(where, Text("rejected", style="red"), "", clean(reason))
    for proof in proofs:
        if not quiet or proof.status != "proven":
            result = Text(proof.status, style=styles[proof.status])
            shown.add_row(
                Text(f"{proof.task.task_id} (line {ids[proof.task.task_id]})"), result,
                f"{proof.seconds:.2f}", clean(proof.why),
            )  # fmt: skip
    out.print(shown)
    proven = sum(proof.status == "proven" for proof in proofs)
    out.print(f"{proven} of {len(proofs) + len({w for w, _ in wrong})} tasks proven")
    if wrong or proven < len(proofs):
        raise typer.Exit(1)
