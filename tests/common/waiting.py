"""Units that wait for people, made in one line, and how they come into the queue."""

from __future__ import annotations

from typing import Any

from common.approvals import Approval, Wait, Word
from common.queue.committer import Committer, Decision, Done
from common.queue.connection import Server
from common.queue.scene_queue import SceneQueue
from common.review import Proposal
from common.task import Assignment, Change
from tests.helpers import task, units

EXPIRES = 4_000_000_000.0
"""Unix seconds; no test lasts until then."""


def approval(approval_id: str, field: str, after: Any, **fields: Any) -> Approval:
    """One proposal that people decide on; red, and from absent, unless ``fields`` say more."""
    proposal = Proposal(
        field=field, before=fields.pop("before", None), after=after, reason="it helps",
        level=fields.pop("level", "red"),
    )  # fmt: skip
    return Approval(approval_id=approval_id, proposal=proposal, impact="more", **fields)


def a_wait(before: Assignment, *approvals: Approval, **fields: Any) -> Wait:
    given: dict[str, Any] = {
        "scene": "code", "task_id": before.task.task_id, "unit": before.unit,
        "attempt_id": f"{before.unit}-1-0-d1-a", "before": before, "history": (),
        "approvals": approvals, "reason": "failed", "asked_at": 1.0, "expires_at": EXPIRES,
    }  # fmt: skip
    return Wait(**given | fields)


def yellow(before: Assignment, approval_id: str) -> Wait:
    """A wait for one choice between two hints, or none."""
    one, other = ["Try harder."], ["Read it again."]
    return a_wait(
        before,
        approval(
            approval_id, "hints", one, before=list(before.hints), level="yellow",
            options=(one, other, list(before.hints)),
        ),
    )  # fmt: skip


def green(before: Assignment) -> Change:
    return Change(
        field="task.sampling.temperature", before=before.task.sampling.temperature, after=0.7,
        reason="another sample", level="green",
    )  # fmt: skip


async def put(server: Server, *waits: Wait) -> None:
    """Bring each wait's unit through the queue until it waits."""
    work = SceneQueue(server, "code", consumer="w")
    reviews = SceneQueue(server, "code", consumer="r", stage="review")
    by_task = {wait.task_id: wait for wait in waits}
    await work.publish([units(task(task_id)) for task_id in by_task])
    for lease in await work.take(len(waits)):
        await Committer(work).commit(lease, Done(b"{}"))
    for lease in await reviews.take(len(waits)):
        asked = Decision("failed", "waiting", 20, b"{}", wait=by_task[lease.task_id])
        await Committer(reviews).commit(lease, asked)


def says(by: str, said: Any, value: Any = None, at: float = 100.0, why: str = "") -> Word:
    return Word(by=by, at=at, said=said, value=value, why=why)
