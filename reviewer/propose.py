"""What the rules suggest for the next revision, each with a reason and the steps that show it.

The table (reviewer/policy.yaml) says which of it may be applied, and who must agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from common.llm.parse import name_of
from common.review import Proposal
from common.task import EXPECTED_TOOLS, MAX_STEPS
from common.trajectory import StopReason, Trajectory
from reviewer.hints import hints_for, written
from reviewer.lacks import lacking

_WARMER = 0.7
"""Retrying a small model at temperature 0 gains nothing; a fresh sample at 0.7 does."""
_MAX_TEMPERATURE = 1.2
_LAST_SEED = 2**63 - 1
_LONGEST = 86_400.0
"""Seconds, of one episode."""
_SEVERAL = 2


def propose(trajectory: Trajectory) -> tuple[Proposal, ...]:
    """Suggest changes for the next revision, those that need nobody's word first.

    What success is, and what checks found, is in none. Nor is another model: nothing in an attempt
    shows that one would help.
    """
    found = [*_fresh_sample(trajectory), *_more_steps(trajectory)]
    if not trajectory.verdict.passed:
        found += [*_all_tools(trajectory), *_more_time(trajectory), *lacking(trajectory)]
    return tuple(found)


def _fresh_sample(trajectory: Trajectory) -> Iterator[Proposal]:
    """Advice, and another draw: the same question asked the same way gets the same mistake."""
    assignment, evidence = trajectory.assignment, _failed(trajectory)
    advice = hints_for(trajectory)
    hints = (*written(assignment.hints), *advice)
    if advice and hints != assignment.hints:
        yield Proposal(
            field="hints", before=list(assignment.hints), after=list(hints),
            reason="advice that fits how the attempt failed", evidence=evidence,
        )  # fmt: skip
    sampling = assignment.task.sampling
    now = sampling.temperature
    warmer = _WARMER if now is None or now < _WARMER else round(min(now + 0.2, _MAX_TEMPERATURE), 2)
    if warmer != now:
        yield Proposal(
            field="task.sampling.temperature", before=now, after=warmer, evidence=evidence,
            reason="a fresh sample: the same temperature tends to the same mistake",
        )  # fmt: skip
    if sampling.seed is not None:
        yield Proposal(
            field="task.sampling.seed", before=sampling.seed, evidence=evidence,
            after=sampling.seed + 1 if sampling.seed < _LAST_SEED else 0,
            reason="a fresh sample: the same seed gives the same answers",
        )  # fmt: skip


def _more_steps(trajectory: Trajectory) -> Iterator[Proposal]:
    assignment = trajectory.assignment
    now = assignment.task.max_steps
    most = min(2 * (assignment.original_max_steps or now), MAX_STEPS)
    if trajectory.stop_reason is StopReason.MAX_STEPS and now < most:
        yield Proposal(
            field="task.max_steps", before=now, after=most, reason="it ran out of steps",
            evidence=_failed(trajectory)[-1:],
        )  # fmt: skip


def _more_time(trajectory: Trajectory) -> Iterator[Proposal]:
    now = trajectory.assignment.task.timeout
    if trajectory.stop_reason is StopReason.TIMEOUT and now < _LONGEST:
        yield Proposal(
            field="task.timeout", before=now, after=min(2 * now, _LONGEST),
            reason=f"it ran out of time: {now:g} s were not enough", evidence=_last(trajectory),
        )  # fmt: skip


def _all_tools(trajectory: Trajectory) -> Iterator[Proposal]:
    """Show every tool of the scene to an agent that keeps asking for those it was not shown."""
    if trajectory.assignment.task.constraints.get("only_expected_tools") is not True:
        return
    shown = {name_of(tool) for tool in trajectory.tools}
    known = {name for names in EXPECTED_TOOLS.values() for name in names}
    asked = [n for message in trajectory.messages for n in _asked_for(message)]
    hidden = [name for name in asked if name in known - shown]
    if len(hidden) >= _SEVERAL:
        yield Proposal(
            field="task.constraints.only_expected_tools", before=True, after=False,
            reason=f"it called tools that it was not shown: {', '.join(dict.fromkeys(hidden))}",
            evidence=_last(trajectory),
        )  # fmt: skip


def _asked_for(message: dict[str, Any]) -> Iterator[str]:
    """Yield the tools an answer of the model calls, natively or as a JSON object."""
    if message.get("role") != "assistant":
        return
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield str(function.get("name"))
    content = message.get("content")
    if isinstance(content, str) and content.lstrip().startswith("{"):
        try:
            said = orjson.loads(content)
        except orjson.JSONDecodeError:
            return
        yield str(said.get("tool"))


def _failed(trajectory: Trajectory) -> tuple[int, ...]:
    return tuple(step.step_id for step in trajectory.steps if not step.success)


def _last(trajectory: Trajectory) -> tuple[int, ...]:
    return tuple(step.step_id for step in trajectory.steps[-1:])
