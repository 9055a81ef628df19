"""`python -m benchmarks [NAME]… [--write FILE]`: engine, latency, episodes, peers, path, llm,
sandboxes, reviews.

Measures and prints one table, goals beside the numbers; none of them decides a test. Without names
it runs all, in about eight minutes. `--write docs/benchmarks.md` rewrites that page from this run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib import import_module
from pathlib import Path

from rich.console import Console

from benchmarks.rows import Row, Section, markdown, tables

MODULES = {
    "engine": "engine",
    "latency": "latency",
    "episodes": "episodes",
    "peers": "peers.compare",
    "path": "whole_path",
    "llm": "llm_client",
    "sandboxes": "sandboxes",
    "reviews": "reviews",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables as Markdown")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in MODULES]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there is: {', '.join(MODULES)}")
    load = os.getloadavg()[0]
    sections: list[Section] = []
    for name in given.names or MODULES:
        began = time.monotonic()
        try:
            sections += import_module(f"benchmarks.{MODULES[name]}").main()
        except Exception as error:  # one that fails must not cost the others their numbers
            sections.append(
                Section(name, [Row(name, None, note=f"{type(error).__name__}: {error}")])
            )
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    console = Console(width=max(150, Console().width))
    for table in tables(sections):
        console.print(table)
    for section in sections:
        for note in section.notes:
            console.print(note)
    if given.write is not None:
        page = markdown(sections, names=given.names, file=given.write, load=load)
        given.write.write_text(page)
    return 0 if all(row.value is not None for s in sections for row in s.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
