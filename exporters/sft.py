"""Supervised fine-tuning: one reviewed attempt as one conversation with its tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.review import Label, Review
from common.trajectory import Trajectory
from exporters.labels import accepted_by, label_columns
from exporters.messages import openai_messages, openai_tools


def sft_row(trajectory: Trajectory, review: Review, labels: Sequence[Label] = ()) -> dict[str, Any]:
    """Return ``{messages, tools, metadata}`` as OpenAI, TRL and their kin read it.

    Selecting what is worth training on is not done here. Raises `NotExportable`.
    """
    if review.attempt_id != trajectory.attempt_id:
        raise ValueError(f"{review.attempt_id} is not the review of {trajectory.attempt_id}")
    return {
        "messages": openai_messages(trajectory),
        "tools": openai_tools(trajectory),
        # Nested on purpose: `datasets` takes files with columns such as `id`, `source`, `model`
        # beside `messages` for agent traces, and then refuses to load them.
        "metadata": {
            "task_id": trajectory.task_id,
            "attempt_id": trajectory.attempt_id,
            "revision": trajectory.revision,
            "sample": trajectory.sample,
            "scene": trajectory.assignment.task.scene,
            "first_try": review.first_try,
            "score": review.score,
            "accepted_by": accepted_by(review, labels),
            "labels": label_columns(labels),
            "model": trajectory.agent.model,
            "model_source": trajectory.agent.model_source,
        },
    }
