"""A raw row loses nothing, and no loader takes it for something else."""

from __future__ import annotations

import json

import pytest

from common.failures import Failure, FailureKind
from common.review import Review
from common.trajectory import Trajectory
from exporters.raw import raw_row
from exporters.sft import sft_row
from tests.exporters.attempts import attempt, review_of

TRACE_MARKERS = (
    {"type", "message"},
    {"type", "payload"},
    {"id", "source", "model", "system_prompt", "messages"},
    {"type", "id", "version", "cwd"},
)
"""Columns by which `datasets` 5.2 takes a JSON file for agent traces and asks for `teich`."""


def test_a_raw_row_becomes_the_same_attempt_and_review_again() -> None:
    failure = Failure(kind=FailureKind.TIMEOUT, message="out of time")
    trajectory = attempt(failure=failure)
    review = review_of(trajectory)
    row = json.loads(json.dumps(raw_row(trajectory, review), allow_nan=False))
    assert Trajectory.model_validate(row["trajectory"]) == trajectory
    assert Review.model_validate(row["review"]) == review


def test_users_field_names_are_there() -> None:
    row = raw_row(attempt(), review_of(attempt()))
    assert row["trajectory"]["success"] is True
    assert row["trajectory"]["total_duration"] == 1.5
    assert row["trajectory"]["steps"][0]["action_type"] == "run_python"


@pytest.mark.parametrize("project", [raw_row, sft_row])
def test_no_row_looks_like_an_agent_trace(project: object) -> None:
    assert callable(project)
    columns = set(project(attempt(), review_of(attempt())))
    assert not any(marker <= columns for marker in TRACE_MARKERS)


def test_a_review_of_another_attempt_is_refused() -> None:
    with pytest.raises(ValueError, match="not the review"):
        raw_row(attempt(), review_of(attempt(attempt_id="other")))
