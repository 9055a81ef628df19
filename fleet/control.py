"""`fleet pause`, `resume` and `cancel`: what people do to the work of a running fleet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer

from common.queue.connection import Server
from common.queue.control import Cancelled, Control
from common.queue.keys import Keys
from common.queue.scene_queue import SceneQueue
from fleet.arguments import ALL_SCENES, SceneOption, Why, scene_name
from fleet.context import Output, clean, err, fail, out, settings_for, who, with_server

control_app = typer.Typer()

_CANCEL_DEADLINE = 60.0
"""Seconds `fleet cancel --wait` waits: two leases, as its worker may have been killed."""
_LOOK = 0.2

Scenes = Annotated[list[str] | None, typer.Argument(parser=scene_name, metavar="SCENE...")]
Every = Annotated[bool, typer.Option("--all", help="Every scene.")]


@control_app.command(epilog='Example: fleet pause code --why "the provider is down"')
def pause(
    scenes: Scenes = None, every: Every = False, why: Why = "", output: Output = None
) -> None:
    """Hand out no more work of a scene. What runs, runs to its end; what waits is kept."""
    settings = settings_for(output)

    async def one(server: Server, scene: str) -> str:
        changed = await Control(server, scene).pause(who(why))
        counts = await SceneQueue(server, scene).counts()
        if not changed:
            return f"{scene}: was paused already, by {counts.paused}"
        if every and not counts["tasks"]:
            return ""
        runs = f"{counts.running} attempts run on to their end, " if counts.running else ""
        return f"{scene}: paused; {runs}{counts.waiting + counts.delayed} wait"

    names = _chosen(scenes, every)
    lines = with_server(settings, lambda server: _each(server, names, one))
    _say(lines)
    if "" in lines:
        out.print("every scene is paused now, also those that have had no task yet")
    out.print(clean(f"go on with: fleet resume {'--all' if every else ' '.join(names)}"))


@control_app.command(epilog="Example: fleet resume code")
def resume(
    scenes: Scenes = None, every: Every = False, why: Why = "", output: Output = None
) -> None:
    """Hand out the work of a paused scene again."""
    settings = settings_for(output)

    async def one(server: Server, scene: str) -> str:
        counts = await SceneQueue(server, scene).counts()
        changed = await Control(server, scene).resume(who(why))
        if not changed:
            return "" if every else f"{scene}: was not paused"
        return f"{scene}: goes on; {counts.waiting + counts.delayed} wait"

    lines = with_server(settings, lambda server: _each(server, _chosen(scenes, every), one))
    _say(lines)
    if not any(lines):
        out.print("no scene was paused")


@control_app.command(epilog='Example: fleet cancel task-7 task-8 --wait --why "wrong tests"')
def cancel(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK", help="Task ids.")],
    scene: SceneOption = None,
    why: Why = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when they have really ended, within 60 s.")
    ] = False,
    output: Output = None,
) -> None:
    """End tasks: what waits at once, what runs at its worker's next heartbeat.

    Their scene is found by itself. Exit code 1 where a task is unknown.
    """
    settings = settings_for(output)
    tasks = list(dict.fromkeys(tasks))
    beat = settings.lease / 3

    async def work(server: Server) -> tuple[list[str], list[tuple[str, str]]]:
        found = await _where(server, tasks, [scene] if scene else list(ALL_SCENES))
        ending = []
        for name, task in found:
            done = await Control(server, name, ledger_ttl=settings.ledger_ttl).cancel(
                task, who(why)
            )
            out.print(clean(f"{task} ({name}): {_told(done, beat)}"))
            if done.outcome == "stopping":
                ending.append((name, task))
        known = {task for _, task in found}
        late = await _ended(server, ending) if wait else []
        return [task for task in tasks if task not in known], late

    unknown, late = with_server(settings, work)
    for task in unknown:
        scenes = f"scene {scene}" if scene else "any scene"
        err.print(clean(f"{task}: no such task in {scenes}, or it ended so long ago that it is "
                        "forgotten (FLEET_LEDGER_TTL)", style="red"))  # fmt: skip
    if late:
        names = ", ".join(task for _, task in late)
        fail(
            f"not ended within {_CANCEL_DEADLINE:.0f} s: {names}. They end at their workers' next "
            "heartbeat, or when another worker takes over from a dead one: fleet status"
        )
    if unknown:
        raise typer.Exit(1)


def _chosen(scenes: list[str] | None, every: bool) -> list[str]:
    if every and scenes:
        fail("name scenes, or use --all, not both", 2)
    if not every and not scenes:
        fail("name a scene, or use --all", 2)
    return list(dict.fromkeys(scenes or ALL_SCENES))


async def _each(
    server: Server, names: list[str], one: Callable[[Server, str], Awaitable[str]]
) -> list[str]:
    return [await one(server, name) for name in names]


def _say(lines: list[str]) -> None:
    for line in filter(None, lines):
        out.print(clean(line))


async def _where(server: Server, tasks: list[str], scenes: list[str]) -> list[tuple[str, str]]:
    """Return (scene, task) for every scene that knows one of the tasks."""
    asked = [(scene, task) for task in tasks for scene in scenes]

    async def ask() -> list[int]:
        async with server.client.pipeline(transaction=False) as pipe:
            for scene, task in asked:
                pipe.exists(Keys(scene).ledger(task))
            return list(await pipe.execute())

    known = await server.persist(ask)
    return [pair for pair, there in zip(asked, known, strict=True) if there]


def _told(done: Cancelled, beat: float) -> str:
    match done.outcome:
        case "ended":
            return f"had ended before: {done.state}"
        case "cancelled":
            return f"cancelled; {done.units} of its attempts were waiting"
        case "stopping":
            return (
                f"stopping; {done.units} of its attempts were waiting, those that run are stopped "
                f"within {beat:.0f} s, those in review get their review"
            )
        case "unknown":
            return "ended and forgotten just now"


async def _ended(server: Server, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Wait until tasks have ended; returns those that have not in time."""
    deadline = time.monotonic() + _CANCEL_DEADLINE
    began = time.monotonic()
    with err.status("") as shown:
        while pairs:
            open_ = [pair for pair in pairs if await _open(server, *pair)]
            for scene, task in pairs:
                if (scene, task) not in open_:
                    seconds = time.monotonic() - began
                    out.print(clean(f"{task} ({scene}): has ended, after {seconds:.1f} s"))
            pairs = open_
            if not pairs or time.monotonic() > deadline:
                break
            shown.update(f"waiting for {len(pairs)} to end")
            await asyncio.sleep(_LOOK)
    return pairs


async def _open(server: Server, scene: str, task: str) -> bool:
    ledger = Keys(scene).ledger(task)
    return bool(await server.persist(lambda: server.client.hget(ledger, "st")) == b"open")
