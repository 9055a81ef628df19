"""Everything that is known of an attempt, for analyses and for exports nobody thought of yet."""

from __future__ import annotations

from typing import Any

from common.review import Review
from common.trajectory import Trajectory


def raw_row(trajectory: Trajectory, review: Review) -> dict[str, Any]:
    """Return ``{trajectory_id, trajectory, review}``; both can be validated back, losing nothing.

    Both are nested: `datasets` looks at the names of the columns, and takes a file with `id`,
    `source`, `model`, `messages` … or `type` and `message` for somebody else's trace format.
    """
    if review.attempt_id != trajectory.attempt_id:
        raise ValueError(f"{review.attempt_id} is not the review of {trajectory.attempt_id}")
    return {
        "trajectory_id": f"{trajectory.task_id}/{trajectory.attempt_id}",
        "trajectory": trajectory.model_dump(mode="json", by_alias=True),
        "review": review.model_dump(mode="json", by_alias=True),
    }
