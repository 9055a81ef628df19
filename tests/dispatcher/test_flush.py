"""A queue that has forgotten everything: nothing is lost, and nothing paid for runs again."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from common.queue.connection import Server
from common.queue.keys import Keys
from common.store import Store
from common.task import Assignment, Task
from dispatcher.finished import Finished
from tests.dispatcher.desk import Desk, line, lines
from tests.dispatcher.test_dispatch import names
from tests.exporters.attempts import attempt, review_of
from tests.helpers import eventually


def decide(
    output: Path,
    data: bytes,
    decision: str = "accepted",
    sample: int = 0,
    *,
    revision: int = 1,
    entry: int = 1_700_000_000_000,
) -> Path:
    """Put a decided attempt at the task of this line into the store; returns its file."""
    task = Task.model_validate(orjson.loads(data))
    trajectory = attempt(
        task_id=task.task_id, sample=sample, revision=revision,
        attempt_id=f"r{revision}-s{sample}-{entry}-0-d1-0a1b2c3d",
        assignment=Assignment(task=task, revision=revision, sample=sample),
        task_sha256=task.sha256,
    )  # fmt: skip
    store = Store(output)
    store.write_attempt(trajectory)
    store.write_review(review_of(trajectory).model_copy(update={"decision": decision}))
    return store.attempt_path(task.task_id, trajectory.attempt_id)


async def test_a_flush_under_an_idle_dispatcher_is_noticed_and_mended(desk: Desk) -> None:
    desk.append(lines(names(0, 20)) + lines(names(0, 3, "w"), "web") + b"no json\n")
    async with desk.following():
        await desk.done()
        await desk.server.client.flushall()
        await desk.arrived(names(0, 20))
        await desk.arrived(names(0, 3, "w"), "web")
    assert len(desk.rejected()) == 1


async def test_a_flush_in_the_middle_of_a_file_loses_no_line(desk: Desk) -> None:
    desk.append(lines(names(0, 3000)))
    async with desk.following():
        await eventually(lambda: desk.count("dispatched") >= 1000, "the first chunk")
        await desk.server.client.flushall()
        desk.append(lines(names(3000, 3500)))
        await eventually(lambda: _all(desk, 3500), "all lines, whatever was there before")
    assert await desk.ids() == names(0, 3500)


async def _all(desk: Desk, count: int) -> bool:
    return len(await desk.ids()) >= count


async def test_what_the_store_holds_the_end_of_is_not_run_again_after_a_flush(
    desk: Desk, server: Server
) -> None:
    tasks = [line(f"t{n}", samples=2 if n == 3 else 1) for n in range(6)]
    desk.append(b"\n".join(tasks) + b"\n")
    await desk.once()
    decide(desk.output, tasks[0])
    decide(desk.output, tasks[1], "iterate")  # its next revision was queued, and is lost
    decide(desk.output, tasks[2], "human")
    decide(desk.output, tasks[3])  # one sample of two
    decide(desk.output, line("t4", description="Another task by that name."))
    await server.client.flushall()
    await desk.once()
    assert set(await desk.ids()) == {"t1", "t3", "t4", "t5"}


async def test_a_recovery_that_is_cut_short_is_gone_on_with(desk: Desk, server: Server) -> None:
    desk.append(lines(names(0, 2500)))
    await desk.once()
    decide(desk.output, line("t02499"))
    await server.client.flushall()
    before = desk.count("dispatched")
    async with desk.following():
        await eventually(lambda: desk.count("dispatched") > before, "the first chunk")
    await desk.once()
    assert await desk.ids() == names(0, 2499)


async def test_two_dispatchers_recover_together(desk: Desk, server: Server) -> None:
    desk.append(lines(names(0, 2500)))
    async with desk.following(), desk.following():
        await desk.done()
        decide(desk.output, line("t02499"))
        await server.client.flushall()
        await desk.arrived(names(0, 2499))
    await desk.once()
    assert await desk.ids() == names(0, 2499)


async def test_a_line_given_twice_is_reported_by_a_new_server_too(desk: Desk) -> None:
    (desk.output / "trajectories").mkdir(parents=True)
    desk.append(lines(["a", "b", "a"]))
    await desk.once()
    assert await desk.ids() == ["a", "b"]
    assert [(row["line"], row["reason"]) for row in desk.rejected()] == [(3, "duplicate task_id")]
    assert desk.count("duplicate") == 1


async def test_a_line_given_twice_is_reported_although_a_flush_came_between(desk: Desk) -> None:
    desk.append(lines(["a", "b"]))
    async with desk.following():
        await desk.arrived(["a", "b"])
        await desk.done()
        await desk.server.client.flushall()
        desk.append(lines(["a", "c"]))
        await desk.arrived(["a", "b", "c"])
        await desk.done()
    assert [(row["line"], row["reason"]) for row in desk.rejected()] == [(3, "duplicate task_id")]


async def test_a_queue_that_lost_our_place_alone_reports_no_line_twice(desk: Desk) -> None:
    desk.append(lines(names(0, 20)))
    async with desk.following():
        await desk.arrived(names(0, 20))
        await desk.done()
        await desk.server.client.delete(Keys("code").cursor)
        desk.append(lines(["new"]))
        await desk.arrived([*names(0, 20), "new"])
        await desk.done()
    assert not desk.rejected()
    assert desk.count("duplicate") == 0


async def test_what_the_ledger_knows_the_store_is_not_asked_about(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.append(lines(names(0, 50)))
    await desk.once()
    decide(desk.output, line("t00007"))
    asked: list[str] = []
    real = Finished.__contains__

    def asking(self: Finished, task: Task) -> bool:
        asked.append(task.task_id)
        return real(self, task)

    monkeypatch.setattr(Finished, "__contains__", asking)
    desk.file.write_bytes(lines([*names(0, 25), "new", *names(25, 50)]))
    await desk.once()
    assert await desk.ids() == [*names(0, 50), "new"]
    assert asked == ["new"]


async def test_an_edit_runs_nothing_again_whose_ledger_has_expired(desk: Desk) -> None:
    desk.append(lines(names(0, 5)))
    await desk.once()
    decide(desk.output, line("t00003"))
    await desk.server.client.delete(Keys("code").ledger("t00003"))
    desk.file.write_bytes(lines(["new", *names(0, 5)]))
    await desk.once()
    assert await desk.ids() == [*names(0, 5), "new"]
    assert not desk.rejected()


async def test_an_edit_after_a_flush_runs_nothing_again_that_was_left_out(desk: Desk) -> None:
    desk.append(lines(names(0, 5)))
    async with desk.following():
        await desk.done()
        decide(desk.output, line("t00003"))
        await desk.server.client.flushall()
        await desk.arrived(["t00000", "t00001", "t00002", "t00004"])
        await desk.done()
    desk.file.write_bytes(lines(["new", *names(0, 5)]))
    await desk.once()
    assert await desk.ids() == ["t00000", "t00001", "t00002", "t00004", "new"]
    assert not desk.rejected()
