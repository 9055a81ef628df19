"""`python -m reviewer`: review committed attempts of all scenes (or of those named)."""

from __future__ import annotations

import argparse
import sys

from common.queue.quiet import quiet
from common.service import Service, run
from common.store import open_store
from common.task import SceneName
from reviewer.reviewer import Reviewer


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

    async def work(service: Service) -> None:
        store = open_store(service.settings.output)
        reviewer = Reviewer(
            service.settings, service.server, store, scenes, service.metrics, service.health,
            consumer=service.consumer,
        )  # fmt: skip
        await reviewer.run(service.draining)

    # Asked to drain, the fleet's workers go first: what they finish is still reviewed.
    return run("reviewer", work, last=lambda server: quiet(server, scenes))


if __name__ == "__main__":
    sys.exit(main())
