"""What people who looked at an attempt say together, and how it reaches the rows of an export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from common.review import Label, Review

AcceptedBy = Literal["verifier", "judges", "people"]


def people_say(labels: Sequence[Label]) -> Literal["pass", "fail"] | None:
    """Return what most people say; a tie is a fail, and None that nobody was sure."""
    passes = sum(label.verdict == "pass" for label in labels)
    fails = sum(label.verdict == "fail" for label in labels)
    if not passes + fails:
        return None
    return "pass" if passes > fails else "fail"


def accepted_by(review: Review, labels: Sequence[Label] = ()) -> AcceptedBy | None:
    """Return on whose word an attempt counts as accepted; None if it does not.

    People accept only what nothing could verify: no opinion makes up for a failed check.
    """
    if people_say(labels) == "fail":
        return None
    if review.decision == "accepted":
        # Reviews of older releases do not say it: theirs all rest on the verifier.
        return review.accepted_by or "verifier"
    if review.decision == "human" and review.passed is None and people_say(labels) == "pass":
        return "people"
    return None


def label_columns(labels: Sequence[Label]) -> list[dict[str, Any]]:
    """Return labels as they are in a row: without notes, which are for people."""
    return [
        {"by": said.by, "verdict": said.verdict, "score": said.score,
         "failure_type": said.failure_type}
        for said in labels
    ]  # fmt: skip
