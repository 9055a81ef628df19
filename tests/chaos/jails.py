"""`python -m tests.chaos.jails RECORDS LOG [--keep N]`: a process that lives off sandboxes.

It starts one after the other through the product's own provider, runs programs in them, and closes
them, until it is killed; each that was closed is a line in LOG. With ``--keep`` it only holds some,
says on demand whether they are well, and ends in order.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
from pathlib import Path

from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.protocol import Sandbox
from workers.sandboxes.spec import Limits, SandboxSpec

LANES = 3
"""Sandboxes at once."""
SPEC = SandboxSpec(
    limits=Limits(memory_mb=64, pids=16, disk_mb=8, inodes=256), files={"task": b"x" * 10_000}
)


async def session(provider: NsjailProvider, rng: random.Random) -> None:
    """One sandbox from its start to its end, with programs that do not like to end."""
    async with await provider.start(SPEC) as sandbox:
        await sandbox.label({"task": str(rng.random())})
        for _ in range(rng.randrange(4)):
            await rng.choice((in_background, stray, plain, python, files))(sandbox)


async def in_background(sandbox: Sandbox) -> None:
    assert (await sandbox.exec("trap '' TERM HUP; sleep 300", background=True)).status == "ok"


async def stray(sandbox: Sandbox) -> None:
    await sandbox.exec("setsid sh -c 'trap \"\" TERM; sleep 300' >/dev/null 2>&1 & sleep 0.02")


async def plain(sandbox: Sandbox) -> None:
    assert (await sandbox.exec("sleep 300", timeout=0.03)).status == "timeout"


async def python(sandbox: Sandbox) -> None:
    assert (await sandbox.run_python("print(6 * 7)")).stdout == "42\n"


async def files(sandbox: Sandbox) -> None:
    await sandbox.write_file("a/b", b"x" * 100_000)
    assert len(await sandbox.read_file("a/b")) == 100_000


async def live(records: Path, log: Path) -> None:
    provider = NsjailProvider(records=records)
    await provider.reap()  # as every worker does when it starts
    rng = random.Random(os.getpid())

    async def lane() -> None:
        while True:
            await session(provider, rng)
            with log.open("a") as file:
                file.write("closed\n")

    async with asyncio.TaskGroup() as lanes:
        for _ in range(LANES):
            lanes.create_task(lane())


async def keep(records: Path, count: int) -> None:
    provider = NsjailProvider(records=records)
    sandboxes = [await provider.start(SPEC) for _ in range(count)]
    for sandbox in sandboxes:
        await in_background(sandbox)
    print("ready", flush=True)
    while await asyncio.to_thread(sys.stdin.readline) == "well?\n":
        said = [
            (await sandbox.exec("echo well; pgrep sleep | wc -l")).stdout for sandbox in sandboxes
        ]
        print(said.count("well\n1\n"), flush=True)
    await provider.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--keep", type=int, default=0)
    args = parser.parse_args()
    asyncio.run(keep(args.records, args.keep) if args.keep else live(args.records, args.log))


if __name__ == "__main__":
    main()
