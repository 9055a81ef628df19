"""Who must agree to a change: a table over the field and its bounds, never anybody's opinion.

The table is `policy.yaml`. What it does not name is red, and so is what is out of its bounds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, JsonValue, ValidationError, model_validator

from common.failures import ConfigurationError
from common.model import Contract, explain
from common.review import Level, Proposal
from common.revision import HINTS as HINTS_FIELD
from common.revision import CannotApply, apply, same, told, value_of
from common.task import Assignment, Change, Task
from reviewer.hints import HINTS

TABLE = Path(__file__).with_name("policy.yaml")

ALWAYS_RED = (
    "task.checks", "task.reference", "task.threshold", "task.timeout", "task.max_iterations",
    "task.agent", "task.constraints.memory_mb", "task.constraints.disk_mb",
    "task.constraints.pids", "task.constraints.network", "task.constraints.hosts",
    "task.constraints.image", "task.constraints.python_packages", "task.constraints.files",
    "task.constraints.keep_background",
)  # fmt: skip
"""Verifiers, thresholds, budgets, images, network and limits: no table can make them less."""

_FIELD = rf"task\.({'|'.join(Task.model_fields)})(\.\w+)*(\.\*)?"
_ORDER: tuple[Level, ...] = ("green", "yellow", "red")
_UNKNOWN = "Nobody has said what this field may do to the data, the cost or the safety of a run."


class Rule(Contract):
    """One entry of the table: what the level of some fields is, and within which bounds."""

    fields: tuple[str, ...] = Field(min_length=1)
    """`hints`, or `task.` and a path; one that ends in `.*` is everything below."""
    level: Level
    outside: Level = "red"
    """Of a value of the right type that is out of bounds."""
    type: Literal["integer", "number", "boolean", "text", "list of texts"] | None = None
    min: int | float | None = None
    max: int | float | None = None
    times_original: float | None = Field(default=None, ge=1)
    """At most so many times what the first revision had; not for a field it did not have."""
    most_characters: int | None = Field(default=None, ge=0)
    approved: Literal["hints"] | None = None
    """Only sentences of reviewer/hints.py."""
    allowed: Literal["models"] | None = None
    """Only models of this fleet."""
    people: int = Field(default=1, ge=1, le=5)
    """Different people at least, where any must agree."""
    editable: bool = False
    """May a person write a value of his own?"""
    why: str = Field(min_length=1)
    impact: str = Field(min_length=1)
    """What it means for the data, the cost or the safety of the run."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if _ORDER.index(self.outside) < _ORDER.index(self.level):
            raise ValueError("outside: a value out of bounds cannot need fewer people than within")
        if self.editable and self.outside != "yellow":
            raise ValueError(
                "editable: whatever a person writes has to be yellow still, so outside must be"
            )
        numbers = (self.min, self.max, self.times_original)
        if self.type not in ("integer", "number") and numbers != (None, None, None):
            raise ValueError("min, max and times_original are bounds of an integer or a number")
        texts = (self.most_characters, self.approved)
        if self.type != "list of texts" and texts != (None, None):
            raise ValueError("most_characters and approved are bounds of a list of texts")
        if self.allowed is not None and self.type != "text":
            raise ValueError("allowed is a bound of a text")
        for field in self.fields:
            if field != HINTS_FIELD and not re.fullmatch(_FIELD, field):
                raise ValueError(f"{field!r} is no field of a task")
            if self.level != "red" and any(_touches(field, red) for red in ALWAYS_RED):
                raise ValueError(f"{field} must be red")
        return self


class Ruling(Contract):
    """What the table says of one proposal."""

    level: Level
    rule: str
    """The field as the table writes it; `unknown` where no rule names it."""
    why: str
    impact: str
    people: int
    """Different people who must agree; 0 for green."""
    editable: bool = False
    refused: str | None = None
    """Why it cannot be applied at all, whoever agrees."""


@dataclass(frozen=True)
class Policy:
    """The table, and what it depends on."""

    rules: tuple[Rule, ...]
    people: int = 1
    """Different people who must approve a red change."""
    models: frozenset[str] = frozenset()
    """That a task may be given by a person's choice alone."""

    @classmethod
    def load(
        cls, path: Path | None = None, *, people: int = 1, models: Sequence[str] = ()
    ) -> Policy:
        """Read the table. Raises `ConfigurationError` naming file, rule and reason."""
        return cls(_read(path or TABLE), people, frozenset(models))

    def ruling(self, proposal: Proposal, assignment: Assignment) -> Ruling:
        """Say who must agree to ``proposal``, and whether it can be applied at all.

        The level depends on the field, its new value and the task alone: not on what the proposal
        says of itself.
        """
        ruling = self._rule(proposal.field, proposal.after, assignment)
        refused = _refusal(proposal, assignment)
        for option in proposal.options if refused is None else ():
            other = self._rule(proposal.field, option, assignment).level
            if _ORDER.index(other) > _ORDER.index(ruling.level):
                refused = f"it offers {told(option)}, which is {other}"
        return ruling.model_copy(update={"refused": refused}) if refused else ruling

    def _rule(self, field: str, after: JsonValue, assignment: Assignment) -> Ruling:
        found = next(((r, f) for r in self.rules for f in r.fields if _names(f, field)), None)
        if found is None:
            why = "no rule of the table names this field"
            return Ruling(level="red", rule="unknown", why=why, impact=_UNKNOWN, people=self.people)
        rule, name = found
        level, why = rule.level, rule.why
        if wrong := _wrong_type(rule, after):
            level, why = "red", wrong
        elif broken := self._out_of_bounds(rule, field, after, assignment):
            level, why = rule.outside, broken
        least = {"green": 0, "yellow": rule.people, "red": max(rule.people, self.people)}
        return Ruling(
            level=level, rule=name, why=why, impact=rule.impact, people=least[level],
            editable=rule.editable and level == "yellow",
        )  # fmt: skip

    def _out_of_bounds(
        self, rule: Rule, field: str, after: Any, assignment: Assignment
    ) -> str | None:
        """Say which bound of the rule a value of the right type breaks; None if it keeps all."""
        if rule.min is not None and after < rule.min:
            return f"{told(after)} is less than {told(rule.min)}"
        if rule.max is not None and after > rule.max:
            return f"{told(after)} is more than {told(rule.max)}"
        if rule.times_original is not None:
            most = _most(rule.times_original, field, assignment)
            if most is None:
                return "the task does not say what it is now"
            if after > most:
                return f"{told(after)} is more than {most:g}"
        if rule.approved == "hints" and not set(HINTS.values()).issuperset(after):
            return "not all of it is advice that was reviewed (reviewer/hints.py)"
        if rule.most_characters is not None and sum(map(len, after)) > rule.most_characters:
            return f"more than {rule.most_characters} characters"
        if rule.allowed == "models" and after not in self.models:
            return f"{told(after)} is not among the models of this fleet"
        return None


def _wrong_type(rule: Rule, after: JsonValue) -> str | None:
    integer = isinstance(after, int) and not isinstance(after, bool)
    fits = {
        None: True,
        "boolean": isinstance(after, bool),
        "integer": integer,
        "number": integer or (isinstance(after, float) and isfinite(after)),
        "text": isinstance(after, str),
        "list of texts": isinstance(after, list) and all(isinstance(one, str) for one in after),
    }
    return None if fits[rule.type] else f"{told(after)} is no {rule.type}"


def _most(times: float, field: str, assignment: Assignment) -> float | None:
    """Return the most a field may be; None where the task does not have it as a number."""
    if field == "task.max_steps":
        return times * (assignment.original_max_steps or assignment.task.max_steps)
    try:
        now = value_of(assignment, field)
    except CannotApply:
        return None
    if isinstance(now, bool) or not isinstance(now, int | float):
        return None
    # Of other fields nobody keeps what they were, so only the first revision may raise them.
    return now * times if assignment.revision == 1 else now


def _refusal(proposal: Proposal, assignment: Assignment) -> str | None:
    try:
        change = Change(
            field=proposal.field, before=proposal.before, after=proposal.after, reason="",
            level="red",
        )  # fmt: skip
        now = value_of(assignment, proposal.field)
        then = value_of(apply(assignment, [change]), proposal.field)
    except CannotApply as error:
        return str(error)
    return f"{proposal.field} is {told(now)} already" if same(now, then) else None


def _names(rule: str, field: str) -> bool:
    return field.startswith(rule[:-1]) if rule.endswith(".*") else field == rule


def _touches(rule: str, field: str) -> bool:
    """Could a change that ``rule`` names change anything of ``field``?"""
    rule = rule.removesuffix(".*")
    return rule == field or rule.startswith(field + ".") or field.startswith(rule + ".")


# -- reading --------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[Rule, ...]:
    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict) or set(data) != {"version", "rules"} or data["version"] != 1:
        raise ConfigurationError(f"{path}: must hold `version: 1` and `rules`, and nothing else")
    if not isinstance(data["rules"], list):
        raise ConfigurationError(f"{path}: rules: must be a list")
    rules, known = [], list[str]()
    for number, entry in enumerate(data["rules"], start=1):
        where = f"{path}: rule {number}"
        if isinstance(entry, dict) and entry.get("fields"):
            where += f" ({told(entry['fields'])})"
        try:
            rule = Rule.model_validate(entry)
        except ValidationError as error:
            what = "; ".join(f"{field}: {reason}" for field, reason in explain(error))
            raise ConfigurationError(f"{where}: {what}") from None
        for field in rule.fields:
            if before := next((one for one in known if _names(one, field)), None):
                raise ConfigurationError(f"{where}: {field}: {before} goes before and hides it")
            known.append(field)
        rules.append(rule)
    return tuple(rules)
