"""What was written is read back the same, and nothing is believed that can be computed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from common.failures import CLASS_OF, Failure, FailureClass, FailureKind, FleetError
from common.review import Proposal, Review, Signal
from common.store import Store
from common.task import Assignment, Change
from common.trajectory import (
    Action,
    Blob,
    CheckResult,
    Observation,
    Step,
    Trajectory,
    Usage,
    Verdict,
)
from tests.common.contracts import as_json, few, problems
from tests.exporters.attempts import attempt, review_of
from tests.helpers import task

# -- failures -------------------------------------------------------------------------------------


def test_every_kind_of_failure_has_a_class_and_the_json_shows_it() -> None:
    assert set(CLASS_OF) == set(FailureKind)
    for kind in FailureKind:
        shown = as_json(Failure(kind=kind, message="m"))
        assert shown["class"] == CLASS_OF[kind].value
        assert "failure_class" not in shown


def test_what_breaks_under_the_agent_is_never_the_agents_failure() -> None:
    of = {
        cls: {kind.value for kind in FailureKind if CLASS_OF[kind] is cls} for cls in FailureClass
    }
    assert of[FailureClass.AGENT] == {"timeout", "compile_error", "runtime_error", "model_error"}
    assert of[FailureClass.TASK] == {"budget_exceeded", "invalid_task", "cancelled"}


def test_an_error_on_its_way_becomes_a_failure_however_long_its_message_is() -> None:
    error = FleetError("x" * 9000, kind=FailureKind.RATE_LIMITED, retry_after=3.0)
    failure = error.as_failure()
    assert (failure.kind, failure.retry_after) == (FailureKind.RATE_LIMITED, 3.0)
    assert failure.message == "x" * 4000


# -- trajectories and reviews ---------------------------------------------------------------------

STEP = Step(
    step_id=1,
    thought="想",
    action=Action(tool="run_shell", arguments={"command": "ls", "n": [1, None]}, call_id="c1"),
    observation=Observation(
        text="cut", truncated_from=9,
        blobs=(Blob(sha256="0" * 64, media_type="text/plain", bytes=9, ext="txt"),),
    ),
    success=False,
    exit_code=2,
    failure=Failure(kind=FailureKind.RUNTIME_ERROR, message="exit code 2"),
    started_at=1.5,
    duration=0.25,
    usage=Usage(prompt_tokens=3, cost_usd=None),
    parse="native",
)  # fmt: skip
VERDICT = Verdict(
    passed=False,
    reward=0.5,
    checks=(CheckResult(id="a", passed=True, reward=1.0), CheckResult(id="b", passed=False)),
)
WHOLE = attempt(
    steps=(STEP,),
    verdict=VERDICT,
    failure=Failure(kind=FailureKind.TIMEOUT, message="late"),
    assignment=Assignment(task=task(metadata={"mine": "kept", "runtime_id": "x"})),
    started_at=10.0,
    finished_at=12.25,
)
REVIEW = review_of(WHOLE).model_copy(
    update={
        "signals": (Signal(name="s", value=1, weight=0.5, points=1, steps=(1,)),),
        "proposals": (Proposal(field="f", before=1, after=[2], reason="r", evidence=(1,)),),
        "changes": (Change(field="f", before=None, after="x", reason="r", level="green"),),
    }
)


@pytest.mark.parametrize(
    "whole", [WHOLE, STEP, VERDICT, REVIEW, WHOLE.failure], ids=lambda m: type(m).__name__
)
def test_what_was_written_is_read_back_the_same(whole: BaseModel) -> None:
    read = type(whole).model_validate_json(whole.model_dump_json(by_alias=True))
    assert read == whole
    assert as_json(read) == as_json(whole)


@pytest.mark.parametrize(
    ("model", "value"),
    [(Trajectory, WHOLE), (Step, STEP), (Verdict, VERDICT), (Review, REVIEW),
     (Failure, WHOLE.failure)],
    ids=lambda x: getattr(x, "__name__", ""),
)  # fmt: skip
def test_a_key_nobody_declared_is_refused_by_name(model: type[BaseModel], value: BaseModel) -> None:
    assert problems(model, {**as_json(value), "surprise": 1}) == [("surprise", "unknown field")]


def test_an_unknown_key_deep_in_a_trajectory_is_refused_with_its_place() -> None:
    forged = as_json(WHOLE)
    forged["steps"][0]["observation"]["surprise"] = 1
    assert problems(Trajectory, forged) == [("steps.0.observation.surprise", "unknown field")]


def test_a_change_is_written_with_from_and_to() -> None:
    shown = as_json(REVIEW)
    assert (shown["changes"][0]["from"], shown["changes"][0]["to"]) == (None, "x")
    assert (shown["proposals"][0]["from"], shown["proposals"][0]["to"]) == (1, [2])


def test_forged_computed_fields_are_not_believed() -> None:
    forged = as_json(WHOLE)
    forged["success"] = True
    forged["total_duration"] = 0.001
    forged["metadata"] = {"runtime_id": "somebody else"}
    forged["failure"]["class"] = "infrastructure"
    forged["steps"][0]["action_type"] = "finish"
    forged["steps"][0]["action_params"] = {}
    forged["steps"][0]["failure"]["class"] = "task"
    assert Trajectory.model_validate(forged) == WHOLE
    assert as_json(Trajectory.model_validate(forged)) == as_json(WHOLE)


def test_the_fields_users_query_are_in_the_written_file(tmp_path: Any) -> None:
    """`jq '.success, .total_duration, .metadata.runtime_id, .steps[].action_type'` and the like."""
    store = Store(tmp_path)
    store.write_attempt(WHOLE)
    path = store.attempt_path(WHOLE.task_id, WHOLE.attempt_id)
    shown = json.loads(path.read_text(encoding="utf-8"))
    assert shown["success"] is False
    assert shown["total_duration"] == 2.25
    assert shown["metadata"] == {"mine": "kept", "runtime_id": WHOLE.provenance.worker}
    [step] = shown["steps"]
    assert step["action_type"] == "run_shell"
    assert step["action_params"] == {"command": "ls", "n": [1, None]}
    assert step["observation"]["text"] == "cut"
    assert (step["thought"], step["success"], step["exit_code"]) == ("想", False, 2)
    assert (shown["failure"]["class"], shown["failure"]["kind"]) == ("agent", "timeout")
    assert (shown["stop_reason"], shown["verdict"]["passed"]) == ("finish", False)
    assert {"task_id", "attempt_id", "final_result", "messages", "tools", "usage"} <= set(shown)


def test_an_unverified_attempt_is_neither_a_success_nor_a_failure() -> None:
    assert as_json(attempt(verdict=Verdict(passed=None)))["success"] is None


# -- usage ----------------------------------------------------------------------------------------

USAGES = st.builds(
    Usage,
    prompt_tokens=st.integers(0, 10**9),
    completion_tokens=st.integers(0, 10**9),
    cached_tokens=st.integers(0, 10**9),
    calls=st.integers(0, 10**6),
    cost_usd=st.none() | st.integers(0, 10**6).map(float),
    estimated=st.booleans(),
)


@few
@given(st.lists(USAGES, max_size=5))
def test_usage_adds_up_and_one_unknown_price_makes_the_sum_unknown(parts: list[Usage]) -> None:
    total = sum(parts, Usage())
    assert total.prompt_tokens == sum(p.prompt_tokens for p in parts)
    assert total.completion_tokens == sum(p.completion_tokens for p in parts)
    assert total.cached_tokens == sum(p.cached_tokens for p in parts)
    assert total.calls == sum(p.calls for p in parts)
    assert total.estimated is any(p.estimated for p in parts)
    costs = [p.cost_usd for p in parts]
    known = [c for c in costs if c is not None]
    assert total.cost_usd == (sum(known) if len(known) == len(costs) else None)
    assert sum(reversed(parts), Usage()) == total
