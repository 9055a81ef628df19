"""Our engine beside other task queues: same server, same run, rounds interleaved.

Each peer runs in its own environment (benchmarks/peers/setup.sh) through a small adapter that uses
its fastest way to enqueue and one worker process. What a peer does not do is not held against it:
none of them fences its acknowledgements or reads a file exactly once.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks import drains
from benchmarks.bench import Bench, bench, jobs
from benchmarks.engine import file_section, publish_rate
from benchmarks.rows import Row, Section, at_least
from benchmarks.subject import Subject, SubjectFailed

ROUNDS = 3
HERE = Path(__file__).resolve().parent
HOME = HERE.parent / ".peers"
START = 60.0
"""Seconds a peer may take for one step, its start included."""
OURS = 20_000
LINES = 50_000


@dataclass
class Peer:
    """One library, and how many jobs it gets: a second or more of work at its pace."""

    name: str
    jobs: int
    core: str = "Python"
    enqueued: list[float] = field(default_factory=list)
    drained: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    commands: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)
    trouble: str = ""


PEERS = (
    ("tarsk", 10_000, "Rust"), ("ardiq", 10_000, "Rust"), ("faststream", 6_000, "Python"),
    ("taskiq", 4_000, "Python"), ("dramatiq", 3_000, "Python"), ("saq", 2_000, "Python"),
    ("streaq", 2_000, "Python"), ("celery", 2_000, "Python"), ("arq", 2_000, "Python"),
)  # fmt: skip


def main() -> list[Section]:
    prepared = subprocess.run([str(HERE / "setup.sh")], timeout=900, check=False)
    peers = [Peer(*row) for row in PEERS]
    tasks = jobs(OURS)
    ours: list[drains.Drained] = []
    published: list[float] = []
    files: list[float] = []
    with bench() as one:
        for _ in range(ROUNDS):
            ours.append(drains.drained(one, tasks, concurrency=32))
            published.append(publish_rate(one, tasks))
            one.meter.flush()
            files.append(file_section(one, LINES).rows[0].value or 0.0)
            for peer in peers:
                if not peer.trouble:
                    _round(one, peer)
    found = _section(peers, drains.middle(ours), median(published), median(files))
    if prepared.returncode != 0:
        found.notes.append("Setting the peers up failed; see what it printed.")
    return [found]


def _round(bench: Bench, peer: Peer) -> None:
    """Enqueue and drain once, on an empty server. What goes wrong is kept as the peer's trouble."""
    failed = HOME / peer.name / ".failed"
    python = HOME / peer.name / "bin" / "python"
    if not python.exists():
        why = failed.read_text().strip() if failed.exists() else "no environment"
        peer.trouble = f"not installed: {why[-200:]}"
        return
    bench.meter.flush()
    environment = {"BENCH_URL": bench.url, "BENCH_JOBS": str(peer.jobs)}
    try:
        for what in ("enqueue", "drain"):
            bench.meter.restart()
            arguments = [str(HERE / "adapters" / f"on_{peer.name}.py"), what, str(peer.jobs)]
            with Subject(arguments, folder=bench.folder, env=environment, python=python) as one:
                found = one.result(START)
            used = bench.meter.use()
            rate = found["jobs"] / found["seconds"]
            (peer.enqueued if what == "enqueue" else peer.drained).append(rate)
        peer.cpu.append(found["cpu"] / peer.jobs * 1e6)
        peer.server_cpu.append(used.cpu / peer.jobs * 1e6)
        peer.commands.append(used.commands / peer.jobs)
        peer.peak_mb.append(found["peak_mb"])
    except SubjectFailed as error:
        peer.trouble = f"did not run: {error}"


def _section(
    peers: list[Peer], ours: drains.Drained, published: float, from_file: float
) -> Section:
    section = Section(f"Beside other task queues, one worker process, medians of {ROUNDS}")
    section.headings = (
        "", "core", "enqueue/s", "drain/s", "worker µs/job", "server µs/job", "commands/job", "MB",
    )  # fmt: skip
    section.lines.append(
        ("this fleet (fenced, with event and ledger)", "Python", f"{published:,.0f}",
         f"{ours.rate:,.0f}", f"{ours.cpu:.0f}", f"{ours.server_cpu:.0f}", f"{ours.commands:.1f}",
         f"{ours.peak_mb:.0f}")
    )  # fmt: skip
    for peer in sorted(peers, key=lambda p: -median(p.drained or [0.0])):
        name = f"{peer.name} {_version(peer.name)}"
        if peer.trouble:
            section.lines.append((name, peer.core, "–", "–", "–", "–", "–", "–"))
            section.notes.append(f"{name} {peer.trouble}")
            continue
        columns = (peer.cpu, peer.server_cpu, peer.commands, peer.peak_mb)
        section.lines.append(
            (name, peer.core, f"{median(peer.enqueued):,.0f}", f"{median(peer.drained):,.0f}",
             *(f"{median(c):.1f}" if c is peer.commands else f"{median(c):.0f}" for c in columns))
        )  # fmt: skip
    ran = [peer for peer in peers if not peer.trouble]

    def best(what: Callable[[Peer], list[float]], core: str) -> tuple[float, str]:
        of = [(median(what(p)), p.name) for p in ran if core in ("", p.core)]
        return max(of, default=(0.0, "none ran"))

    for label, value, (peak, name), goal in (
        ("drain, 32 slots, against the fastest pure-Python peer", ours.rate,
         best(lambda p: p.drained, "Python"), 4.0),
        ("drain, 32 slots, against the fastest Rust-cored peer", ours.rate,
         best(lambda p: p.drained, "Rust"), 1.0),
        ("file → stream against the best bulk enqueue", from_file,
         best(lambda p: p.enqueued, ""), 1.0),
        ("publish alone against the best bulk enqueue", published,
         best(lambda p: p.enqueued, ""), None),
    ):  # fmt: skip
        section.rows.append(
            Row(label, value / peak if peak else None, "x", at_least(goal) if goal else None,
                f"{value:,.0f} against {peak:,.0f} a second ({name})")
        )  # fmt: skip
    section.notes.append(
        "Drain is from the start of the first no-op job to that of the last (ours: to its commit). "
        "Worker CPU is counted between those two; 8 threads for dramatiq, one sequential "
        "subscriber for faststream, the solo pool for celery (it acknowledges before it runs), "
        "32 slots for the rest. taskiq and faststream leave acknowledged entries in the stream; "
        "streaq, arq, saq and ardiq store a result; ours stores state and an event."
    )
    return section


def _version(name: str) -> str:
    """Return the version pinned for a peer."""
    wanted = {name, f"{name}-redis"}
    for line in (HERE / f"{name}.txt").read_text().splitlines():
        package, _, rest = line.partition("==")
        if package in wanted:
            return rest.split()[0]
    return ""
