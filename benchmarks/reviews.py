"""How many attempts one reviewer process reviews in a second by rules alone."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import orjson

from benchmarks.bench import BATCH, SCENE, Bench, ask, bench, fill, jobs
from benchmarks.rows import Row, Section, at_least, at_most
from benchmarks.subject import Subject
from common.audit import AuditLog
from common.queue.committer import Committer, Done
from common.queue.connection import Server
from common.queue.scene_queue import SceneQueue
from common.review import Review
from common.store import Store
from common.task import Assignment, SceneName
from common.trajectory import (
    Action,
    Agent,
    CheckResult,
    EnvironmentInfo,
    Observation,
    Provenance,
    Step,
    StopReason,
    Trajectory,
    Verdict,
)

COUNT = 3000
STEPS = 10
OBSERVATION = "line of output that a program printed\n" * 20
OLD_LINES = 100_000
_FIRST = 300
"""Reviews before the clock starts: what a process does once is no part of its rate."""
_AT_ONCE = 32


def main() -> list[Section]:
    with bench() as one:
        section = Section("Reviews")
        fill(one.url, jobs(COUNT, checks=[{"type": "stdout", "expected": "42"}]))
        ask(one.url, lambda server: _attempt_all(server, one.folder / "output"))
        rate = _reviewed(one)
        raw = _written(one.folder)
        note = f"{COUNT} attempts of {STEPS} steps, a third of them failed; one process"
        section.rows = [
            Row("reviews by rules alone", rate, "/s", at_least(300), note),
            Row("the same review files, only written and fsynced", raw, "/s",
                note=f"{_AT_ONCE} threads; reviewing reaches {rate / raw:.0%} of it"),
            Row("a copy of nothing new into the audit log", _copied(one), "ms", at_most(10),
                f"{len(SceneName)} scenes, {OLD_LINES:,} lines there"),
        ]  # fmt: skip
        return [section]


async def _attempt_all(server: Server, output: Path) -> None:
    """Take every task and commit an attempt at it, as workers do."""
    queue, store = SceneQueue(server, SCENE, consumer="bench"), Store(output)
    committer = Committer(queue)
    number = 0
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        while leases := await queue.take(BATCH):
            made = []
            for lease in leases:
                assignment = Assignment.model_validate_json(lease.payload)
                made.append((lease, _attempt(assignment, lease.attempt_id, number)))
                number += 1
            digests = list(threads.map(lambda one: store.write_attempt(one[1]), made))
            for (lease, _), digest in zip(made, digests, strict=True):
                event = {"attempt_id": lease.attempt_id, "sha256": digest}
                await committer.commit(lease, Done(orjson.dumps(event)))


def _attempt(assignment: Assignment, attempt_id: str, number: int) -> Trajectory:
    passed = number % 3 != 0
    steps = tuple(
        Step(
            step_id=n,
            thought="Look at what it printed, then go on.",
            action=Action(tool="run_python", arguments={"code": f"print({n})"}, call_id=f"c{n}"),
            observation=Observation(text=f"{n}\n{OBSERVATION}"),
            success=n % 4 != 0,
            exit_code=int(n % 4 == 0),
            started_at=float(n),
            duration=0.1,
        )
        for n in range(1, STEPS + 1)
    )
    messages = tuple(
        {"role": "tool", "tool_call_id": f"c{s.step_id}", "content": s.observation.text}
        for s in steps
    )
    return Trajectory(
        task_id=assignment.task.task_id,
        revision=1,
        sample=0,
        attempt_id=attempt_id,
        trace_id=hashlib.md5(attempt_id.encode()).hexdigest(),
        assignment=assignment,
        task_sha256=assignment.task.sha256,
        agent=Agent(kind="llm", model="m", provider="p", model_source="api"),
        environment=EnvironmentInfo(backend="nsjail"),
        messages=messages,
        steps=steps,
        stop_reason=StopReason.FINISH,
        verdict=Verdict(
            passed=passed, reward=float(passed), checks=(CheckResult(id="c", passed=passed),)
        ),
        started_at=1.0,
        finished_at=2.0,
        provenance=Provenance(fleet_version="0", worker="bench", host="bench"),
    )


def _copied(bench: Bench) -> float:
    """Let a log that holds everything look once more; reviewers do so every second or so."""
    folder = bench.folder / "audited" / "audit"
    folder.mkdir(parents=True)
    old = "".join(
        f'{{"scene": "code", "entry": "{n}-0", "task_id": "t{n}", "decision": "accepted"}}\n'
        for n in range(1, OLD_LINES + 1)
    )
    (folder / "decisions-2024-01.jsonl").write_text(old)

    async def copy(server: Server) -> float:
        log, scenes = AuditLog(folder.parent), [scene.value for scene in SceneName]
        await log.copy(server, scenes)
        took = []
        for _ in range(20):
            began = time.monotonic()
            assert await log.copy(server, scenes) == 0
            took.append(time.monotonic() - began)
        return median(took) * 1000

    return ask(bench.url, copy)


def _reviewed(bench: Bench) -> float:
    environment = bench.environment(FLEET_LOG_LEVEL="WARNING")
    with Subject(["-m", "reviewer", SCENE], folder=bench.folder, env=environment):
        return ask(bench.url, _rate)


async def _rate(server: Server) -> float:
    queue = SceneQueue(server, SCENE)
    began, first = 0.0, 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        done = (await queue.counts())["reviewed"]
        if not began and done >= _FIRST:
            began, first = time.monotonic(), done
        if done >= COUNT:
            return (done - first) / (time.monotonic() - began)
    raise RuntimeError(f"{done} of {COUNT} attempts were reviewed within two minutes")


def _written(folder: Path) -> float:
    """Write what the reviewer wrote once more, elsewhere."""
    there, other = Store(folder / "output"), Store(folder / "other")
    reviews: list[Review] = [item.review for item in there.reviewed()]
    began = time.monotonic()
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(other.write_review, reviews))
    return len(reviews) / (time.monotonic() - began)
