"""Who must agree to a change: nothing changes without a rule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.review import Proposal
from common.task import Assignment
from reviewer.hints import HINTS
from reviewer.levels import level
from tests.helpers import task

ADVICE = HINTS["timeout"]


@pytest.mark.parametrize(
    ("field", "after", "expected"),
    [
        ("task.sampling.temperature", 0, "green"),
        ("task.sampling.temperature", 1.2, "green"),
        ("task.sampling.temperature", 1.21, "red"),
        ("task.sampling.temperature", -0.1, "red"),
        ("task.sampling.temperature", "hot", "red"),
        ("task.sampling.temperature", None, "red"),
        ("task.sampling.top_p", 1.0, "green"),
        ("task.sampling.top_p", 0.0, "red"),
        ("task.sampling.seed", 7, "green"),
        ("task.max_steps", 20, "green"),
        ("task.max_steps", 21, "red"),
        ("task.max_steps", 0, "red"),
        ("task.max_steps", 12.5, "red"),
        ("hints", [ADVICE], "green"),
        ("hints", [], "green"),
        ("hints", [ADVICE, "The answer is 42."], "yellow"),
        ("hints", "The answer is 42.", "yellow"),
        ("hints", None, "yellow"),
        ("hints", [[ADVICE]], "yellow"),
        ("task.description", "Print 2.", "yellow"),
        ("task.expected_tools", ["python"], "yellow"),
        ("task.sampling.model", "bigger", "yellow"),
        ("task.constraints.only_expected_tools", True, "yellow"),
        ("task.constraints.network", "all", "red"),
        ("task.constraints.memory_mb", 8192, "red"),
        ("task.constraints.files", {}, "red"),
        ("task.checks", [], "red"),
        ("task.checks.0.expected", "2", "red"),
        ("task.threshold", 0, "red"),
        ("task.timeout", 301, "red"),
        ("task.max_iterations", 10, "red"),
        ("task.agent", "oracle", "red"),
        ("task.reference", None, "red"),
        ("task.task_id", "u", "red"),
        ("max_steps", 11, "red"),
        ("task.max_stepS", 11, "red"),
        ("task.sampling.temperature ", 0.5, "red"),
        ("", None, "red"),
    ],
)
def test_the_field_decides_who_must_agree(field: str, after: Any, expected: str) -> None:
    proposal = Proposal(field=field, after=after, reason="because I say so: level green")
    assert level(proposal, Assignment(task=task(max_steps=10))) == expected


@given(st.text(), st.none() | st.booleans() | st.integers() | st.text())
def test_what_the_table_does_not_name_is_red(field: str, after: Any) -> None:
    proposal = Proposal(field="task." + field + "x", after=after, reason="r")
    assert level(proposal, Assignment(task=task())) == "red"


def test_steps_are_counted_from_the_first_revision_so_that_doubling_does_not_repeat() -> None:
    doubled = Assignment(task=task(max_steps=20), revision=2, original_max_steps=10)
    for after, expected in ((20, "green"), (21, "red"), (40, "red")):
        proposal = Proposal(field="task.max_steps", before=20, after=after, reason="r")
        assert level(proposal, doubled) == expected


def test_no_change_is_green_that_the_task_could_not_hold() -> None:
    assignment = Assignment(task=task(max_steps=400))
    for after, expected in ((500, "green"), (501, "red"), (800, "red"), (True, "red")):
        proposal = Proposal(field="task.max_steps", after=after, reason="r")
        assert level(proposal, assignment) == expected
    for field in ("task.sampling.temperature", "task.sampling.top_p"):
        assert level(Proposal(field=field, after=True, reason="r"), assignment) == "red"
    assert level(Proposal(field="task.sampling.seed", after="x", reason="r"), assignment) == "red"
