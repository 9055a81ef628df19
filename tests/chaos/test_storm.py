"""Random kills, freezes, partitions and server restarts: nothing lost, nothing committed twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from common.store import Store
from tests.chaos.scene import times_run
from tests.chaos.storm import Size, Storm, chosen_seed, total

SHORT = Size(tasks=250, workers=4, reviewers=2, seconds=30, restarts=1, every=1.2)
LONG = Size(tasks=2000, workers=8, reviewers=2, seconds=120, restarts=2, every=1.0)


async def survives(folder: Path, size: Size) -> None:
    async with Storm(folder, size, chosen_seed()) as storm:
        await storm.blow()
        await storm.calm(within=90)
        counts = await storm.counts()
        decisions = await storm.decisions()
        assert await storm.left_pending() == 0
    run = times_run(storm.executed)
    again = sum(n - 1 for n in run.values())
    late = total(counts, "lost")
    kinds = Counter(fault.kind for fault, _ in storm.hit)
    print(
        f"storm: {size.tasks} tasks, {storm.units} units, faults {dict(kinds)} ({storm.missed} "
        f"missed their victim); executed again {again} of {storm.in_flight} in flight at faults; "
        f"reclaimed {total(counts, 'reclaimed')}, late results refused {late}"
    )

    # Nothing lost, and every number agrees.
    assert [c.unaccounted for c in counts] == [0, 0]
    assert len(run) == storm.units
    assert total(counts, "tasks") == size.tasks
    assert total(counts, "units") == total(counts, "committed") == storm.units
    assert total(counts, "reviewed") == total(counts, "accepted") == storm.units
    assert (total(counts, "dead"), total(counts, "tasks_accepted")) == (0, size.tasks)
    for c in counts:
        assert (c.waiting, c.running, c.delayed, c.reviewing) == (0, 0, 0, 0)

    # Nothing twice: one decision a unit, and only about the attempt that was committed.
    assert len(decisions) == len({(d["task_id"], d["unit"]) for d in decisions}) == storm.units
    assert late > 0, "no late owner came back: the storm was too mild to prove anything"
    assert 0 < again <= storm.in_flight

    check_store(storm, {(d["task_id"], d["attempt_id"]) for d in decisions})


def check_store(storm: Storm, committed: set[tuple[str, str]]) -> None:
    """Each committed attempt is there with its review; an attempt that lost has no review."""
    store = Store(storm.output)
    reviewed, unreviewed = set(), 0
    for task_id in store.tasks():
        for attempt_id in store.attempts_of(task_id):
            if store.read_review(task_id, attempt_id) is None:
                unreviewed += 1
                continue
            reviewed.add((task_id, attempt_id))
            trajectory = store.read_attempt(task_id, attempt_id)
            assert (trajectory.success, len(trajectory.steps)) == (True, 2)
    assert reviewed == committed
    stray = [
        review
        for review in storm.output.glob("trajectories/*/*.review.json")
        if not review.with_name(review.name.replace(".review.json", ".json")).exists()
    ]
    assert not stray
    print(f"store: {len(reviewed)} reviewed attempts, {unreviewed} left by owners that lost")


async def test_a_storm_of_faults_loses_nothing_and_commits_nothing_twice(tmp_path: Path) -> None:
    await survives(tmp_path, SHORT)


@pytest.mark.chaos
async def test_two_minutes_of_storm_over_2000_tasks(tmp_path: Path) -> None:
    await survives(tmp_path, LONG)
