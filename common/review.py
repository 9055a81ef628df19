"""What the reviewer, its judges and people say about one attempt, and what follows from it."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, JsonValue, computed_field

from common.model import Contract, Written
from common.task import Change
from common.trajectory import Usage

Level = Literal["green", "yellow", "red"]
"""Who must agree to a change: nobody, a person who chooses, a person who approves."""
DecisionName = Literal["accepted", "iterate", "waiting", "rejected", "human"]
"""`waiting`: a person has to decide on a change first; `human`: one has to look at the attempt."""


class Signal(Contract):
    """One deterministic measurement that fed the score."""

    name: str
    value: float
    weight: float = Field(default=0.0, ge=0)
    """Its share of the whole rubric, over all dimensions it feeds."""
    points: float = Field(ge=0, le=1)
    """1 is best."""
    steps: tuple[int, ...] = ()
    """Step ids that show it."""


class Dimension(Contract):
    """What one dimension of the rubric came to."""

    id: str
    weight: float = Field(ge=0)
    points: float | None = Field(ge=0, le=1)
    """1 is best; null: neither a signal nor a judge could say, and it does not count."""
    signals: float | None = Field(default=None, ge=0, le=1)
    """What the signals alone say."""
    judge: float | None = Field(default=None, ge=1, le=5)
    """Median of the judge's votes."""


class Vote(Contract):
    """One answer of a judge to one question, or why it is none."""

    round: int = Field(ge=1)
    window: int = Field(ge=1)
    """Of a trajectory too long for one prompt, from 1."""
    score: int | None = Field(default=None, ge=1, le=5)
    """Null: unknown, or no vote."""
    reason: str = Field(default="", max_length=2000)
    evidence: tuple[int, ...] = ()
    """Step ids it cites; all of them exist."""
    invalid: str | None = None
    """Why the answer is no vote: not to be read, out of range, evidence that does not exist."""


APART = 1.0
"""Levels by which the rounds of one judge may differ; beyond, what it says is no grade and no word
that the task was done, and a person should look."""


class Judgement(Contract):
    """What one judge says to one criterion."""

    criterion: str
    """Id of a dimension, or `outcome`."""
    model: str
    median: float | None = Field(default=None, ge=1, le=5)
    """Over the rounds that voted; null: no round did."""
    spread: float | None = Field(default=None, ge=0, le=4)
    """Highest minus lowest of the rounds; more than `APART` is no one view."""
    votes: tuple[Vote, ...] = ()


class JudgeReport(Contract):
    """What the judges were asked about one attempt, and said."""

    judgements: tuple[Judgement, ...] = ()
    own_model: bool = False
    """A judge is the very model that acted: no other was configured."""
    usage: Usage = Usage()
    prompt_sha256: str | None = None
    """Of the questions' wording."""
    missing: str | None = None
    """Why they were not asked to the end, e.g. that the budget was spent."""

    def of(self, criterion: str) -> tuple[Judgement, ...]:
        return tuple(j for j in self.judgements if j.criterion == criterion)


class Group(Contract):
    """The first tries at one task, looked at together."""

    size: int = Field(ge=1)
    passed: int = Field(ge=0)
    pass_at: dict[str, float] = Field(default_factory=dict)
    """k → chance that at least one of k tries passes (unbiased, Chen et al. 2021, eq. 1)."""
    pass_all: dict[str, float] = Field(default_factory=dict)
    """k → chance that all of k tries pass (pass^k, Yao et al. 2024)."""
    spread: float = Field(ge=0, le=1)
    """Highest minus lowest verifier reward."""
    best: str
    """Attempt id: passed before failed, then reward, then fewer steps, then the id."""
    attempts: tuple[str, ...]


class Proposal(Contract):
    """A change the reviewer suggests; the level comes from a table over the field."""

    field: str
    """`hints`, or `task.` and the path of a field of the task."""
    before: JsonValue = Field(default=None, alias="from")
    """What it must still be when the change is applied; null: absent."""
    after: JsonValue = Field(default=None, alias="to")
    reason: str
    evidence: tuple[int, ...] = ()
    """Step ids."""
    options: tuple[JsonValue, ...] = ()
    """Other values that would do, for a person to choose among."""
    by: str = "rules"
    """`rules`, or the name of the model that suggests it."""
    claimed: Level | None = None
    """The level that model gave it: a statistic, nothing more."""
    level: Level | None = None
    """By the table (reviewer/policy.yaml)."""
    refused: str | None = None
    """Why it cannot be applied to this task at all; it is asked of nobody then."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)


class Review(Written):
    """A decision about one attempt. Its file beside the attempt makes it visible to exporters."""

    format_version: Literal[1] = 1
    task_id: str
    attempt_id: str
    revision: int
    sample: int
    passed: bool | None
    """The verdict it rests on."""
    score: int | None = Field(default=None, ge=0, le=100)
    """At most 49 when a check failed, at least 50 when all passed or judges accepted; else null."""
    decision: DecisionName
    reason: str
    accepted_by: Literal["verifier", "judges"] | None = None
    """`judges`: nothing verified it; two of them agreed."""
    dimensions: tuple[Dimension, ...] = ()
    signals: tuple[Signal, ...] = ()
    judge: JudgeReport | None = None
    """Null: no judge was asked."""
    group: Group | None = None
    """Of a task with several samples, once all first tries have ended."""
    second_look: str | None = None
    """Why a person should look at it before others."""
    best_attempt: str | None = None
    """The best of this sample's revisions so far; null in reviews of older releases."""
    proposals: tuple[Proposal, ...] = ()
    changes: tuple[Change, ...] = ()
    """Green ones: applied to the next revision, at once or with what a person decides."""
    approvals: tuple[str, ...] = ()
    """Ids of what a person has to decide, while `waiting`."""
    rubric: str
    """Name and version of the rubric."""
    rubric_sha256: str | None = None
    reviewed_at: float
    """Unix time, seconds."""
    reviewer: str
    delivery: int = Field(default=1, ge=1)
    """Of the event it was made for: what a later delivery led to is what was settled."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def first_try(self) -> bool:
        """Retried results come from another distribution: they have seen hints and changes."""
        return self.revision == 1


class Label(Contract):
    """What a person says about one attempt, without having seen what the machine says."""

    task_id: str
    attempt_id: str
    by: str
    verdict: Literal["pass", "fail", "unsure"]
    score: int | None = Field(default=None, ge=0, le=100)
    failure_type: str | None = Field(default=None, max_length=64)
    note: str = Field(default="", max_length=4000)
    at: float
    """Unix time, seconds."""
