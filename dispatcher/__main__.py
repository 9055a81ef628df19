"""`python -m dispatcher FILE...`: the dispatcher as a process of its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.service import Service, run
from dispatcher.dispatcher import dispatch


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m dispatcher",
        description="Follow tasks files as they grow and queue every line once.",
        epilog="Settings come from the environment: FLEET_REDIS_URL, FLEET_OUTPUT, "
        "FLEET_MAX_BACKLOG, FLEET_MAX_LINE_BYTES, FLEET_METRICS_PORT.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="need not exist yet")
    parser.add_argument(
        "--once", action="store_true",
        help="end when all lines are queued; a last line counts even without its newline",
    )  # fmt: skip
    given = parser.parse_args(arguments)

    async def work(service: Service) -> None:
        await dispatch(
            given.files, service.settings, service.server, service.metrics, service.health,
            draining=service.draining, once=given.once,
        )  # fmt: skip

    return run("dispatcher", work)


if __name__ == "__main__":
    sys.exit(main())
