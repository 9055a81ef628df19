"""What a sandbox costs, beside a bare Python in the same run: `python -m benchmarks sandboxes`.

Everything is real: nsjail with control groups where this user may make them, and without. A bare
`python3 -c pass` of the same interpreter, started the same way, is the unit for starts.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from benchmarks.rows import Row, Section, at_least, at_most
from workers.sandboxes.nsjail import cgroups
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.nsjail.records import Record
from workers.sandboxes.pool import Pool
from workers.sandboxes.protocol import Sandbox
from workers.sandboxes.spec import SandboxSpec

STARTS, STEPS = 60, 400
RATE_SECONDS, AT_ONCE = 6.0, 8
IDLE, MANY = 100, 200


def main() -> list[Section]:
    modes = [("control groups", True)] if cgroups.find() is not None else []
    modes.append(("rlimits only", False))
    return [uvloop.run(measure(name, use_cgroups)) for name, use_cgroups in modes]


async def measure(name: str, use_cgroups: bool) -> Section:
    with tempfile.TemporaryDirectory() as folder:
        provider = NsjailProvider(records=Path(folder), use_cgroups=use_cgroups)
        try:
            await provider.probe()
            rows = [
                *await starts(provider), *await steps(provider), await rate(provider),
                await checkouts(provider), *await crowds(provider, Path(folder)),
            ]  # fmt: skip
        finally:
            await provider.close()
    section = Section(f"Sandboxes, nsjail with {name}", rows)
    section.notes.append(
        "A bare Python is the jails' interpreter running `pass`, started and waited for. Ready: "
        "from the call to a sandbox that has answered its set-up. A step: one call to its result. "
        "PSS is that of nsjail and the agent in it, shared pages shared out."
    )
    return section


async def starts(provider: NsjailProvider) -> list[Row]:
    bare, ready = [], []
    for _ in range(STARTS):  # in turns, so that both see the same machine
        began = time.perf_counter()
        subprocess.run(["/usr/bin/python3", "-c", "pass"], check=True)
        bare.append(time.perf_counter() - began)
        began = time.perf_counter()
        sandbox = await provider.start(SandboxSpec())
        ready.append(time.perf_counter() - began)
        await sandbox.close()
    unit = statistics.median(bare)
    return [
        Row("bare python3 -c pass", unit * 1e3, "ms"),
        Row("session ready, median", statistics.median(ready) / unit, "x bare", at_most(3),
            f"{statistics.median(ready) * 1e3:.1f} ms"),
        Row("session ready, p95", p95(ready) / unit, "x bare", at_most(6)),
    ]  # fmt: skip


async def steps(provider: NsjailProvider) -> list[Row]:
    async with await provider.start(SandboxSpec()) as sandbox:
        shell = await timed(lambda: sandbox.exec("echo x"), STEPS)
        python = await timed(lambda: sandbox.run_python("pass"), STEPS)
        rested = await timed(lambda: sandbox.run_python("pass"), STEPS // 4, rest=0.02)
        file = await timed(lambda: sandbox.write_file("f", b"x" * 1000), STEPS)
    crowd = [await provider.start(SandboxSpec()) for _ in range(AT_ONCE)]
    began = time.perf_counter()
    await asyncio.gather(*(many_steps(sandbox) for sandbox in crowd))
    took = time.perf_counter() - began
    await asyncio.gather(*(sandbox.close() for sandbox in crowd))
    return [
        Row("step: sh -c echo, median", statistics.median(shell) * 1e3, "ms", at_most(3)),
        Row("step: run_python pass, median", statistics.median(rested) * 1e3, "ms", at_most(2),
            "20 ms after the step before: a model takes longer"),
        Row("  without a rest", statistics.median(python) * 1e3, "ms"),
        Row("step: write_file of 1 kB, median", statistics.median(file) * 1e3, "ms"),
        Row(f"steps of {AT_ONCE} sessions together", AT_ONCE * STEPS / took, "/s", at_least(1000),
            "run_python pass"),
    ]  # fmt: skip


async def many_steps(sandbox: Sandbox) -> None:
    for _ in range(STEPS):
        await sandbox.run_python("pass")


async def rate(provider: NsjailProvider) -> Row:
    end, done = time.perf_counter() + RATE_SECONDS, 0

    async def one_after_the_other() -> None:
        nonlocal done
        while time.perf_counter() < end:
            sandbox = await provider.start(SandboxSpec())
            await sandbox.close()
            done += 1

    began = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    per_second = done / (time.perf_counter() - began)
    return Row("sessions created and destroyed", per_second, "/s", at_least(40), f"{AT_ONCE} ways")


async def checkouts(provider: NsjailProvider) -> Row:
    """Check out from a pool that had time to fill, as an agent's thinking gives it."""
    full = asyncio.Event()
    pool = Pool(provider, 4, lambda ready: full.set() if ready == 4 else full.clear())
    took: list[float] = []
    try:
        for round_ in range(25):
            taken = []
            for _ in range(4):
                began = time.perf_counter()
                taken.append(await pool.start(SandboxSpec(labels={"task": str(round_)})))
                took.append(time.perf_counter() - began)
            await asyncio.gather(*(sandbox.close() for sandbox in taken))
            await asyncio.wait_for(full.wait(), 30)
    finally:
        await pool.close()
    warm = took[4:]  # the first ones taught the pool what is wanted
    return Row("warm checkout, p95", p95(warm) * 1e3, "ms", at_most(1),
               f"median {statistics.median(warm) * 1e3:.2f} ms")  # fmt: skip


async def crowds(provider: NsjailProvider, records: Path) -> list[Row]:
    crowd = [await provider.start(SandboxSpec()) for _ in range(IDLE)]
    pss = sum(memory(Record.model_validate_json(file.read_bytes()))
              for file in records.glob("*.json")) / IDLE  # fmt: skip
    crowd += [await provider.start(SandboxSpec()) for _ in range(MANY - IDLE)]
    began = time.perf_counter()
    answers = await asyncio.gather(*(s.run_python(f"print({n})") for n, s in enumerate(crowd)))
    took = time.perf_counter() - began
    right = sum(answer.stdout == f"{n}\n" for n, answer in enumerate(answers))
    await asyncio.gather(*(sandbox.close() for sandbox in crowd))
    return [
        Row(f"memory of an idle session, of {IDLE}", pss / (1 << 20), "MiB PSS", at_most(8)),
        Row("sessions at once, each answered right", right, "", at_least(MANY),
            f"all of them in {took * 1e3:.0f} ms"),
    ]  # fmt: skip


def memory(record: Record) -> int:
    """Return the bytes of PSS of a jail's processes."""
    assert record.jail is not None
    waiting, total = [record.jail.pid], 0
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
        children = (folder / "task" / folder.name / "children").read_text()
        waiting += [int(pid) for pid in children.split()]
    return total


async def timed(
    call: Callable[[], Awaitable[object]], times: int, rest: float = 0.0
) -> list[float]:
    await call()
    took = []
    for _ in range(times):
        await asyncio.sleep(rest)
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)
    return took


def p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1]
