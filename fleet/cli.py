"""The `fleet` command."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from common import __version__
from common.failures import ConfigurationError
from common.queue.connection import Server
from common.queue.scene_queue import NewTask, SceneQueue
from common.store import StoreError
from common.task import Assignment, Task
from exporters.export import FORMATS, Selection
from exporters.export import export as write_export
from fleet import status as status_view
from fleet.arguments import scene_name
from fleet.audit import audit_app
from fleet.budget import budget_app
from fleet.checkup import doctor
from fleet.children import python
from fleet.context import Output, clean, err, fail, guard, out, settings_for, store_of, with_server
from fleet.control import control_app
from fleet.dead import dead_app
from fleet.drain import drain_app
from fleet.packages import packages_app
from fleet.schemas import schema
from fleet.show import show as show_trajectory
from fleet.tasksfile import read_tasks
from workers.scenes import SCENES

app = typer.Typer(
    name="fleet",
    help="Verified AI-agent trajectories from one file of tasks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for commands in (control_app, drain_app, audit_app):
    app.add_typer(commands)  # without a name: `fleet pause`, not `fleet control pause`
for name, commands in (("dead", dead_app), ("budget", budget_app), ("packages", packages_app)):
    app.add_typer(commands, name=name)
app.command(epilog="Example: fleet schema task")(schema)
app.command(epilog="Example: fleet doctor")(doctor)
EXIT_NO_MODEL = 69
"""EX_UNAVAILABLE of sysexits.h: no provider configured, and no embedded model to be had."""


@app.command(epilog="Example: fleet up tasks.jsonl --until-done")
def up(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Tasks files to follow. Default: tasks.jsonl")
    ] = None,
    output: Output = None,
    scene: Annotated[
        list[str] | None,
        typer.Option(parser=scene_name, metavar="SCENE", help="Scenes to serve. Default: all."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Episodes at once in each worker (8).")
    ] = None,
    until_done: Annotated[
        bool, typer.Option("--until-done", help="End once every task in the files has ended.")
    ] = False,
    agent: Annotated[
        str | None,
        typer.Option(help="Who acts where a line does not say: llm (default), oracle or nop."),
    ] = None,
    budget_usd: Annotated[
        float | None, typer.Option(min=0, help="US dollars models may cost, in all; live: budget.")
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(min=0, help="Tokens models may use, in all.")
    ] = None,
    allow_unsafe: Annotated[
        bool,
        typer.Option(
            "--allow-unsafe",
            help="Work although sandboxes do not hold what they promise; trajectories say so.",
        ),
    ] = False,
) -> None:
    """Bring up everything in this terminal: server, model, dispatcher, workers, reviewer.

    Work is kept in the output folder: started again, it goes on where it was. Ctrl-C drains, and
    so does `fleet drain` in another terminal.
    """
    from fleet.up import Fleet, NoModel, Plan, State

    settings = settings_for(
        output, concurrency=concurrency, agent=agent,
        budget_usd=budget_usd, budget_tokens=budget_tokens, allow_unsafe=allow_unsafe or None,
    )  # fmt: skip
    scenes = scene or list(SCENES)
    for name in scenes:
        if name not in SCENES:
            fail(f"no scene {name!r} in this release; there is: {', '.join(SCENES)}", 2)
    plan = Plan(
        files=files or [Path("tasks.jsonl")],
        scenes=scenes,
        workers=workers,
        concurrency=settings.concurrency,
        until_done=until_done,
        needs_model=settings.agent == "llm",
    )
    if until_done and (absent := [str(f) for f in plan.files if not f.exists()]):
        fail(f"no such file: {', '.join(absent)}", 2)
    told = 0.0

    def lines(state: State, snapshot: status_view.Snapshot | None) -> Table:
        grid = Table.grid()
        seconds = time.monotonic() - state.began
        grid.add_row(Text(f"model: {state.model} · {seconds:.0f} s", style="bold"))
        if snapshot is not None and snapshot.scenes:
            grid.add_row(status_view.table(snapshot))
            for remark in status_view.remarks(snapshot):
                grid.add_row(Text(remark, style="yellow"))
        for child in state.children:
            if child.restarts:
                grid.add_row(Text(f"{child.name} restarted {child.restarts} times: see {child.log}",
                                  style="red"))  # fmt: skip
        if state.note:
            grid.add_row(Text(state.note, style="dim"))
        return grid

    with Live(console=out, refresh_per_second=4, auto_refresh=False) as live:

        def draw(state: State, snapshot: status_view.Snapshot | None) -> None:
            nonlocal told
            if out.is_terminal:
                live.update(lines(state, snapshot), refresh=True)
            elif time.monotonic() - told > 5:
                told = time.monotonic()
                err.print(_brief(state.model, snapshot, plan.scenes), highlight=False, markup=False)

        try:
            outcome = asyncio.run(Fleet(plan, settings, draw).run())
        except* ConfigurationError as group:
            live.stop()
            error = _first(group)
            fail(str(error), EXIT_NO_MODEL if isinstance(error, NoModel) else 78)
        except* StoreError as group:
            live.stop()
            fail(str(_first(group)), 78)
    for line in outcome.broken:
        err.print(clean(line, style="red"))
    snapshot = outcome.last
    if not out.is_terminal:
        out.print(status_view.table(snapshot))
        for remark in status_view.remarks(snapshot):
            out.print(Text(remark))
    undone = snapshot.open_tasks or any(c["dead"] for c in snapshot.scenes.values())
    if until_done and (undone or not outcome.finished):
        raise typer.Exit(1)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _brief(model: str, snapshot: status_view.Snapshot | None, scenes: list[str]) -> str:
    if snapshot is None:
        return f"model: {model}"
    parts = [
        f"{name}: {c['tasks'] - c.open_tasks}/{c['tasks']} tasks ended, {c.running} running, "
        f"{c['accepted']} accepted"
        for name, c in snapshot.scenes.items()
        if c["tasks"]
    ]
    parts += snapshot.held_up(scenes)
    return "; ".join(parts) or "starting"


@app.command(epilog="Example: fleet status --json")
def status(
    output: Output = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what waits, runs and came of it, per scene."""
    snapshot = with_server(settings_for(output), status_view.look)
    if as_json:
        data = status_view.as_dict(snapshot)
        print(orjson.dumps(data, option=orjson.OPT_INDENT_2).decode())  # noqa: T201
        return
    if any(counts["tasks"] for counts in snapshot.scenes.values()):
        out.print(status_view.table(snapshot))
    else:
        out.print("no task has been dispatched yet")
    for remark in status_view.remarks(snapshot):
        out.print(Text(remark, style="yellow"))


@app.command(epilog="Example: fleet submit more.jsonl")
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


@app.command(epilog="Example: fleet validate tasks.jsonl")
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


@app.command(epilog="Example: fleet show task-7 --full")
def show(
    task_id: str,
    output: Output = None,
    attempt: Annotated[str | None, typer.Option(help="Which attempt. Default: the last.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Long results too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The stored file itself.")] = False,
) -> None:
    """Show a task's trajectory as a transcript, with verdict and review."""
    store = store_of(settings_for(output))
    attempts = guard(lambda: store.attempts_of(task_id))
    if not attempts:
        close = [t for t in store.tasks() if task_id in t][:5]
        fail(f"no attempt of {task_id!r}" + (f"; there is: {', '.join(close)}" if close else ""))
    if attempt is not None and attempt not in attempts:
        fail(f"no attempt {attempt!r}; there is: {', '.join(attempts)}")
    chosen = attempt or attempts[-1]
    if as_json:
        sys.stdout.buffer.write(store.attempt_path(task_id, chosen).read_bytes() + b"\n")
        return
    trajectory = guard(lambda: store.read_attempt(task_id, chosen))
    review = guard(lambda: store.read_review(task_id, chosen))
    show_trajectory(out, trajectory, review, full=full)
    if len(attempts) > 1 and attempt is None:
        out.print(Text(f"{len(attempts)} attempts: {', '.join(attempts)}", style="dim"))


@app.command(epilog="Example: fleet export sft --out output/sft.jsonl")
def export(
    fmt: Annotated[str, typer.Argument(metavar="FORMAT", help=f"One of {', '.join(FORMATS)}.")],
    out_file: Annotated[Path | None, typer.Option("--out", help="Default: FORMAT.jsonl")] = None,
    output: Output = None,
    scene: Annotated[
        list[str] | None,
        typer.Option(parser=scene_name, metavar="SCENE", help="Only these scenes."),
    ] = None,
    include_embedded: Annotated[
        bool, typer.Option("--include-embedded", help="Also the small demonstration model's.")
    ] = False,
    include_unverified: Annotated[
        bool, typer.Option("--include-unverified", help="Also attempts no check has judged.")
    ] = False,
) -> None:
    """Write accepted, verified attempts as JSON lines."""
    if fmt not in FORMATS:
        fail(f"no format {fmt!r}; there is: {', '.join(FORMATS)}", 2)
    settings = settings_for(output)
    store = store_of(settings)
    target = out_file or settings.output / f"{fmt}.jsonl"
    selection = Selection(
        scenes=frozenset(scene) if scene else None,
        embedded=include_embedded,
        unverified=include_unverified,
    )
    with Progress(
        SpinnerColumn(), TextColumn("{task.completed} attempts read"), console=err, transient=True
    ) as bar:
        job = bar.add_task("", total=None)
        done = guard(
            lambda: write_export(
                store, fmt, target, selection,
                progress=lambda seen: bar.update(job, completed=seen),
            )
        )  # fmt: skip
    out.print(f"{done.rows} rows in {target}")
    for reason, count in sorted(done.left_out.items()):
        out.print(Text(f"{count} left out: {reason}", style="dim"))


@app.command(epilog="Example: fleet model")
def model() -> None:
    """Say which model acts; fetch the embedded one's weights if it is the one (once, 0.5 GB)."""
    from common.llm.providers import choose

    settings = settings_for(None)
    try:
        chosen = choose(settings)
    except ConfigurationError as error:
        fail(str(error), 78)
    for place, provider in enumerate(chosen):
        out.print(f"{'then' if place else 'first'} {provider.model} ({provider.name})")
    if chosen[0].name == "embedded" and chosen[0].base_url is None:
        fetched = subprocess.run(python("common.llm.embedded", "--fetch-only"), check=False)
        raise typer.Exit(1 if fetched.returncode else 0)


@app.command(epilog="Example: fleet version")
def version() -> None:
    """Print the version."""
    out.print(__version__)


def main() -> None:
    app()
