"""`python -m reviewer`: review committed attempts of all scenes (or of those named)."""

from __future__ import annotations

import argparse
import sys

from common.failures import ConfigurationError
from common.llm.client import connect
from common.llm.providers import choose, named
from common.llm.telemetry import CallCounter
from common.llm.types import ChatModel
from common.logs import logger
from common.queue.quiet import quiet
from common.quota.budgets import BudgetWatch
from common.quota.gate import Gate
from common.service import Service, run
from common.settings import Settings
from common.store import open_store
from common.task import SceneName
from reviewer.counsel import Counsel
from reviewer.judge.calibration import Calibrations
from reviewer.reviewer import Reviewer
from reviewer.rubric import rubrics

log = logger("reviewer")


def main() -> int:
    every = [scene.value for scene in SceneName]
    parser = argparse.ArgumentParser(prog="python -m reviewer", description=__doc__)
    parser.add_argument(
        "scenes", nargs="*", metavar="SCENE", help=f"default: all of {', '.join(every)}"
    )
    scenes = parser.parse_args().scenes or every
    unknown = sorted(set(scenes) - set(every))
    if unknown:
        parser.error(f"unknown scene {', '.join(unknown)}; known: {', '.join(every)}")
    # Asked to drain, the fleet's workers go first: what they finish is still reviewed.
    return run("reviewer", lambda service: work(service, scenes),
               last=lambda server: quiet(server, scenes))  # fmt: skip


async def work(service: Service, scenes: list[str]) -> None:
    """Connect whom the settings name as judges, and review until told to drain."""
    settings, metrics = service.settings, service.metrics
    store = open_store(settings.output)
    rubrics(settings.rubrics)  # a bad file ends it here, not at the first attempt of its scene
    gate = Gate(service.server, service.consumer, metrics=metrics)
    watch = BudgetWatch(service.server, metrics=metrics)
    judges: list[ChatModel] = []
    proposers: list[ChatModel] = []
    count = CallCounter(metrics)
    try:
        for names, models in ((settings.judges, judges), (settings.proposer, proposers)):
            if names != "off":
                configs = named(settings, names)
                models += connect(
                    settings, configs=configs, observe=count, gate=gate, watch=watch
                )  # fmt: skip
        await watch.start()
        counsel = Counsel(
            judges=judges,
            proposer=proposers[0] if proposers else None,
            calibrations=Calibrations(settings.output),
            votes=settings.judge_votes,
            floor=settings.judge_floor,
            deadline=settings.llm_deadline,
            patience=settings.llm_rate_limit_budget,
            metrics=metrics,
        )
        reviewer = Reviewer(
            settings, service.server, store, scenes, metrics, service.health,
            consumer=service.consumer, counsel=counsel, watch=watch, models=_models(settings),
        )  # fmt: skip
        await reviewer.run(service.draining)
    finally:
        for model in (*judges, *proposers):
            await model.close()
        await gate.close()
        await watch.close()


def _models(settings: Settings) -> tuple[str, ...]:
    """Return the models a task may be given: those of the provider that acts.

    A task names a model, not a provider; it is asked for where the worker asks.
    """
    try:
        provider = choose(settings)[0]
    except ConfigurationError as error:  # a reviewer can do without those who act
        log.warning("models.unknown", error=str(error), hint="a change of the model is red")
        return ()
    return tuple(dict.fromkeys((provider.model, *provider.record.models)))


if __name__ == "__main__":
    sys.exit(main())
