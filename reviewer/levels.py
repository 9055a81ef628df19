"""Who may change what: a table over the field and its bounds, never anybody's opinion.

Green is applied at once; yellow waits for a person to choose, red for one to approve. What the
table does not name is red.
"""

from __future__ import annotations

from typing import Literal

from common.review import Proposal
from common.task import MAX_STEPS, Assignment
from reviewer.hints import HINTS

Level = Literal["green", "yellow", "red"]

_YELLOW = {
    "task.description", "task.expected_tools", "task.sampling.model",
    "task.constraints.only_expected_tools",
}  # fmt: skip
_SAMPLING = {"task.sampling.temperature": (0.0, 1.2), "task.sampling.top_p": (0.01, 1.0)}


def level(proposal: Proposal, assignment: Assignment) -> Level:
    """Return who must agree to ``proposal``."""
    after = proposal.after
    match proposal.field:
        case "task.sampling.temperature" | "task.sampling.top_p":
            low, high = _SAMPLING[proposal.field]
            if isinstance(after, bool) or not isinstance(after, int | float):
                return "red"
            return "green" if low <= after <= high else "red"
        case "task.sampling.seed":
            return "green" if type(after) is int else "red"
        case "task.max_steps":
            original = assignment.original_max_steps or assignment.task.max_steps
            most = min(2 * original, MAX_STEPS)
            return "green" if type(after) is int and 0 < after <= most else "red"
        case "hints":
            approved = set(HINTS.values())
            fits = isinstance(after, list) and approved.issuperset(str(h) for h in after)
            return "green" if fits else "yellow"
        case field if field in _YELLOW:
            return "yellow"
        case _:
            return "red"
