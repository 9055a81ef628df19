"""Everything that is known of an attempt, for analyses and for exports nobody thought of yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.review import Label, Review
from common.trajectory import Trajectory


def raw_row(trajectory: Trajectory, review: Review, labels: Sequence[Label] = ()) -> dict[str, Any]:
    """Return ``{trajectory_id, trajectory, review, labels}``; all can be validated back, losing
    nothing.

    They are nested: `datasets` looks at the names of the columns, and takes a file with `id`,
    `source`, `model`, `messages` … or `type` and `message` for somebody else's trace format.
    """
    if review.attempt_id != trajectory.attempt_id:
        raise ValueError(f"{review.attempt_id} is not the review of {trajectory.attempt_id}")
    return {
        "trajectory_id": f"{trajectory.task_id}/{trajectory.attempt_id}",
        "trajectory": trajectory.model_dump(mode="json", by_alias=True),
        "review": review.model_dump(mode="json", by_alias=True),
        "labels": [label.model_dump(mode="json") for label in labels],
    }
