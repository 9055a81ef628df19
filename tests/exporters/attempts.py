"""Reviewed attempts to export: the smallest that show each way a model can be talked to."""

from __future__ import annotations

from typing import Any, Literal

from common.review import Review
from common.task import Assignment, Change, Task
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

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "run_python",
            "description": "Run a Python program.",
            "parameters": {
                "type": "object",
                "properties": {"code": {"type": "string"}},
                "required": ["code"],
            },
        },
    },
)

CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "run_python", "arguments": '{"code": "print(\\"é\\")"}'},
}
NATIVE: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": "You solve tasks."},
    {"role": "user", "content": "Print é."},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "One line will do.",
        "refusal": None,
        "tool_calls": [{**CALL, "index": 0, "extra_content": {"signature": "x"}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "é"},
    {"role": "assistant", "content": "It is done.", "tool_calls": []},
)
FENCED: tuple[dict[str, Any], ...] = (
    {"role": "system", "content": "Reply with one fenced code block."},
    {"role": "user", "content": "Print 1."},
    {"role": "assistant", "content": "```python\nprint(1)\n```"},
    {"role": "user", "content": "Result of run_python:\n```\n1\n```"},
    {"role": "assistant", "content": "DONE"},
)


def step(parse: Literal["native", "fenced", "schema", "fallback", "scripted"]) -> Step:
    return Step(
        step_id=1,
        thought="One line will do.",
        action=Action(tool="run_python", arguments={"code": "print(1)"}, call_id="call_1"),
        observation=Observation(text="1"),
        success=True,
        exit_code=0,
        started_at=1.0,
        duration=0.1,
        parse=parse,
    )


def attempt(
    messages: tuple[dict[str, Any], ...] = NATIVE,
    *,
    parse: Literal["native", "fenced", "schema", "fallback", "scripted"] = "native",
    **changes: Any,
) -> Trajectory:
    task = Task(task_id="task-1", task_type="code", description="Print é.")
    change = Change(field="max_steps", before=5, after=10, reason="ran out", level="green")
    fields: dict[str, Any] = {
        "task_id": "task-1",
        "revision": 2,
        "sample": 0,
        "attempt_id": "task-1.r2-s0.abc",
        "trace_id": "0" * 32,
        "assignment": Assignment(task=task, revision=2, changes=(change,)),
        "task_sha256": task.sha256,
        "agent": Agent(kind="llm", model="some-model", provider="p", model_source="api"),
        "environment": EnvironmentInfo(backend="nsjail"),
        "tools": TOOLS,
        "messages": messages,
        "steps": (step(parse),),
        "stop_reason": StopReason.FINISH,
        "verdict": Verdict(passed=True, reward=1.0, checks=(CheckResult(id="c", passed=True),)),
        "started_at": 1.0,
        "finished_at": 2.5,
        "provenance": Provenance(fleet_version="0.1.0", worker="w", host="h"),
    }
    return Trajectory(**{**fields, **changes})


def review_of(trajectory: Trajectory) -> Review:
    return Review(
        task_id=trajectory.task_id,
        attempt_id=trajectory.attempt_id,
        revision=trajectory.revision,
        sample=trajectory.sample,
        passed=trajectory.verdict.passed,
        score=93,
        decision="accepted",
        reason="all checks passed",
        rubric="default-1",
        reviewed_at=3.0,
        reviewer="r",
    )
