"""`fleet judge`: how far the models that grade can be trusted, measured against verifiers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from common.failures import ConfigurationError, FleetError
from common.llm.client import connect
from common.llm.providers import named
from common.llm.types import ChatModel
from common.only_one import only_one
from common.process import consumer_name
from common.queue.connection import Server, ServerGone
from common.quota.budgets import BudgetWatch
from common.quota.gate import Gate
from common.settings import Settings
from common.store import Store, StoreError
from fleet.arguments import SceneOption
from fleet.context import (
    PATIENCE,
    Output,
    clean,
    err,
    fail,
    guard,
    known_url,
    out,
    settings_for,
    store_of,
)
from reviewer.judge.asking import Judge
from reviewer.judge.calibration import Calibration, Calibrations, calibrate
from reviewer.judge.candidates import Candidate, candidates, sample
from reviewer.rubric import rubric_for

judge_app = typer.Typer(
    help="Models that grade attempts: how far they agree with verifiers.", no_args_is_help=True
)

_EXIT_TRY_AGAIN = 75
"""EX_TEMPFAIL of sysexits.h: the same command goes on where this one ended."""


@judge_app.command("calibrate", epilog="Example: fleet judge calibrate --scene code --limit 200")
def judge_calibrate(
    scene: SceneOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Attempts of each scene, at most.")] = 100,
    judge: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="As in FLEET_JUDGES, whose models are the default."),
    ] = None,
    include_embedded: Annotated[
        bool, typer.Option("--include-embedded", help="Also the small demonstration model's.")
    ] = False,
    output: Output = None,
) -> None:
    """Ask judges about attempts whose verdict is known to us, and not to them.

    Half of the attempts passed, where the store has as many. Answers are kept: stopped and started
    again, it goes on where it was. A judge whose kappa is under FLEET_JUDGE_FLOOR accepts nothing
    alone.
    """
    settings = settings_for(output)
    store = store_of(settings)
    names = judge or ("auto" if settings.judges == "off" else settings.judges)
    left_out: Counter[str] = Counter()
    found = _candidates(store, scene, include_embedded, left_out)
    if not found:
        others = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        fail(
            "no attempt of a model with a verdict is stored here"
            + (f" of scene {scene}" if scene else "")
            + (f"; left out: {others}" if others else "")
        )
    done: list[Calibration] = []
    try:
        folder = settings.output / "calibrations"
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder / ".lock", patience=0):
            asyncio.run(_measure(settings, store, names, found, limit, done))
    except (ConfigurationError, ServerGone) as error:
        fail(str(error), 78)
    except OSError as error:
        fail(f"{error.filename or settings.output}: {error.strerror or error}")
    except (FleetError, StoreError) as error:
        _print(settings, done)
        fail(f"{error}. What was answered is kept: run it again to go on", _EXIT_TRY_AGAIN)
    _print(settings, done)


@judge_app.command("show", epilog="Example: fleet judge show")
def judge_show(output: Output = None) -> None:
    """Show what judges were measured, and which of them are trusted."""
    settings = settings_for(output)
    found = Calibrations(settings.output).all()
    if not found:
        out.print("no judge has been measured here: `fleet judge calibrate` does it")
        return
    _print(settings, found)


def _candidates(
    store: Store, scene: str | None, embedded: bool, left_out: Counter[str]
) -> list[Candidate]:
    with Progress(
        TextColumn("{task.completed} attempts read"), console=err, transient=True,
        disable=not err.is_terminal,
    ) as bar:  # fmt: skip
        job = bar.add_task("", total=None)
        return guard(
            lambda: candidates(
                store, embedded=embedded, scene=scene, left_out=left_out,
                told=lambda read: bar.update(job, completed=read),
            )
        )  # fmt: skip


async def _measure(
    settings: Settings,
    store: Store,
    names: str,
    found: Sequence[Candidate],
    limit: int,
    done: list[Calibration],
) -> None:
    """Measure every judge on every scene; what is finished is written, and added to ``done``."""
    async with _connected(settings, names) as models:
        judges = [
            Judge(
                model, votes=settings.judge_votes, deadline=settings.llm_deadline, endpoint=endpoint
            )
            for model, endpoint in models
        ]
        work = []
        for scene in sorted({one.scene for one in found}):
            mine = [one for one in found if one.scene == scene]
            rubric = rubric_for(scene, settings.rubrics)
            work += [(one, scene, rubric, sample(mine, limit=limit, judge=one)) for one in judges]
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            console=err, transient=True, disable=not err.is_terminal,
        ) as bar:  # fmt: skip
            for judge, scene, rubric, chosen in work:
                job = bar.add_task(f"{scene}, {judge.name}", total=len(chosen))
                calibration = await calibrate(
                    judge, scene, rubric, chosen, store, told=partial(bar.advance, job)
                )
                Calibrations(store.root).write(calibration)
                done.append(calibration)


@asynccontextmanager
async def _connected(settings: Settings, names: str) -> AsyncIterator[list[tuple[ChatModel, str]]]:
    """Connect to models through the fleet's limits and budgets, if a fleet is there.

    Yields each with the URL it is served at; the embedded one's is another at each start.
    """
    configs = named(settings, names)
    server = await _server(settings)
    gate = watch = None
    models: list[ChatModel] = []
    try:
        if server is not None:
            gate, watch = Gate(server, consumer_name()), BudgetWatch(server)
            await watch.start()
        models = connect(settings, configs=configs, gate=gate, watch=watch)
        urls = ["" if one.source == "embedded" else one.base_url or "" for one in configs]
        yield list(zip(models, urls, strict=True))
    finally:
        for model in models:
            await model.close()
        if gate is not None:
            await gate.close()
        if watch is not None:
            await watch.close()
        if server is not None:
            await server.close()


async def _server(settings: Settings) -> Server | None:
    """Return the fleet's server; None where no fleet is up, so that nobody shares the models."""
    try:
        url = known_url(settings)
    except ConfigurationError:
        return None
    server = Server(url, patience=PATIENCE)
    if not settings.redis_url and not await server.answers():
        await server.close()  # the address outlived the `fleet up` that wrote it
        return None
    return server


def _print(settings: Settings, found: Sequence[Calibration]) -> None:
    if not found:
        return
    shown = Table(
        "scene", "judge", "n", "balanced accuracy", "kappa", "AUC", "unknown", "invalid", "trusted"
    )
    calibrations, floor = Calibrations(settings.output), settings.judge_floor
    for one in found:
        rubric = rubric_for(one.scene, settings.rubrics)
        why = calibrations.objection(
            one.scene, one.judge, rubric, floor=floor, votes=settings.judge_votes
        )
        trusted = Text("yes", style="green") if why is None else clean(f"no: {why}", style="yellow")
        if own := _own_work(one):
            trusted.append(f", {own}", style="yellow")
        ratios = (one.balanced_accuracy, one.kappa, one.auc)
        shown.add_row(
            one.scene, clean(one.judge), str(one.n), *map(_ratio, ratios),
            str(one.unknown), str(one.invalid), trusted,
        )  # fmt: skip
    out.print(shown)


def _own_work(found: Calibration) -> str | None:
    """Say on how many of its own attempts a judge was measured: it may go easy on those."""
    asked = found.n + found.unknown + found.invalid
    share = "all" if found.own == asked else f"{found.own} of {asked}"
    return f"{share} on its own work" if found.own else None


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
