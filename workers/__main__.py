"""`python -m workers SCENE... --concurrency N`: run attempts of these scenes.

Examples:
  python -m workers code --concurrency 8
  FLEET_REDIS_URL=redis://queue:6379/0 python -m workers code
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys

import aiohttp

from common.failures import FleetError
from common.llm.client import connect
from common.llm.types import ChatModel, ModelUnavailable
from common.logs import logger
from common.process import until
from common.quota.budgets import BudgetWatch
from common.quota.gate import Gate
from common.quota.terms import BudgetExceeded
from common.service import Service, run
from common.store import open_store
from workers.environment import Scene
from workers.models import Policies
from workers.scenes import SCENES, build
from workers.worker import Worker

log = logger("workers")

_PAUSES = (1.0, 30.0)
"""Seconds between two tries to open a scene: at first, and at most."""
_CHECK = 35.0
"""Seconds for the first question, waits in the fleet's line included: its own deadline is 30."""


async def wait_until_healthy(url: str) -> None:
    """Return once the embedded model at ``url`` answers; whoever started it watches over it."""
    health = url.removesuffix("/v1") + "/health"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(health) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


async def greet(model: ChatModel) -> None:
    """Ask the model one small question, and say how that went; work begins in any case.

    Raises `ConfigurationError` where only a person can help.
    """
    try:
        async with asyncio.timeout(_CHECK):
            log.info("model.ready", answer=await model.check())
    except ModelUnavailable as error:
        # It may come back; until it does, attempts are retried.
        log.warning("model.unavailable", error=str(error))
    except TimeoutError:
        log.warning("model.unavailable", error=f"it has not been our turn within {_CHECK:g} s")
    except BudgetExceeded as error:
        # Tasks that need it end as dead letters at once, until somebody raises the budget.
        log.warning("model.unpaid", error=str(error))


async def open_in_time(scene: Scene) -> None:
    """Prove a scene; wait for whoever makes its worlds, if that is away now."""
    pause, longest = _PAUSES
    while True:
        try:
            log.info("scene.open", scene=scene.name, **await scene.open())
            return
        except FleetError as error:
            log.warning("scene.unavailable", scene=scene.name, error=str(error), again_in=pause)
        await asyncio.sleep(pause)
        pause = min(longest, pause * 2)


async def work(service: Service, scenes: list[str], *, needs_model: bool) -> None:
    """Prove everything this worker stands on, then take work until it is told to drain."""
    settings, metrics = service.settings, service.metrics
    store = open_store(settings.output)
    built = [build(name, settings, metrics) for name in scenes]
    policies = Policies([], deadline=settings.llm_deadline, metrics=metrics)
    gate = Gate(service.server, service.consumer, metrics=metrics)
    watch = BudgetWatch(service.server, metrics=metrics)
    models = (
        connect(settings, observe=policies.observe, gate=gate, watch=watch) if needs_model else []
    )
    policies.use(models)
    try:
        if models:
            await until(service.draining, watch.start())
        for scene in built:
            await until(service.draining, open_in_time(scene))
            await scene.reap()
        for model in models[:1]:
            if model.source == "embedded":
                # `fleet up` starts it beside us; asking it a question would cost seconds.
                await until(service.draining, wait_until_healthy(str(settings.embedded_url)))
                break
            await until(service.draining, greet(model))
        worker = Worker(
            settings, service.server, store, built, policies, metrics, service.health,
            consumer=service.consumer,
        )  # fmt: skip
        await worker.run(service.draining)
    finally:
        for scene in built:
            await scene.close()
        for model in models:
            await model.close()
        await gate.close()
        await watch.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m workers", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("scenes", nargs="+", metavar="SCENE", help=f"of {', '.join(SCENES)}")
    parser.add_argument("--concurrency", type=int, help="episodes at once (FLEET_CONCURRENCY, 8)")
    parser.add_argument(
        "--no-model", action="store_true",
        help="serve only tasks whose agent is oracle or nop; no provider is needed",
    )  # fmt: skip
    parser.add_argument(
        "--allow-unsafe", action="store_true", default=None,
        help="work although sandboxes do not hold what they promise; every trajectory says so",
    )  # fmt: skip
    args = parser.parse_args()
    scenes = list(dict.fromkeys(args.scenes))
    return run(
        "worker",
        lambda service: work(service, scenes, needs_model=not args.no_model),
        concurrency=args.concurrency,
        allow_unsafe=args.allow_unsafe,
    )


if __name__ == "__main__":
    sys.exit(main())
