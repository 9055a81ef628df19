"""`python -m benchmarks [queue|path|llm]…`: measure and print; no number here decides a test."""

from __future__ import annotations

import sys
from importlib import import_module

MODULES = {"queue": "queue_rates", "path": "whole_path", "llm": "llm_client"}


def main() -> int:
    wanted = sys.argv[1:] or list(MODULES)
    unknown = [name for name in wanted if name not in MODULES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there is: {', '.join(MODULES)}", file=sys.stderr)
        return 2
    sys.argv[1:] = []  # each benchmark has options of its own, at their defaults here
    for name in wanted:
        import_module(f"benchmarks.{MODULES[name]}").main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
