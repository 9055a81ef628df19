"""`python -m tests.chaos.worker LOG SCENE... --concurrency N`: the real worker, napping scenes.

Everything is the product's own but the scenes: `python -m workers` with its registry replaced.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import workers.__main__ as product
from common.metrics import Metrics
from common.service import run
from common.settings import Settings
from tests.chaos.scene import NapScene


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path, help="where executions are noted")
    parser.add_argument("scenes", nargs="+")
    parser.add_argument("--concurrency", type=int, default=4)
    args = parser.parse_args()

    def build(name: str, settings: Settings, metrics: Metrics) -> NapScene:
        return NapScene(name, args.log)

    product.build = build  # type: ignore[assignment]
    return run(
        "worker",
        lambda service: product.work(service, args.scenes, needs_model=False),
        concurrency=args.concurrency,
    )


if __name__ == "__main__":
    sys.exit(main())
