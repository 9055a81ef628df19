"""Who must agree to a change: a table over the field and its bounds, never anybody's opinion.

The table is `policy.yaml`. What it does not name is red, and so is what is out of its bounds. It
also says what a scene takes at all: a change beyond that is refused, for nobody's word can save it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, JsonValue, ValidationError, model_validator

from common import strict_yaml
from common.failures import ConfigurationError
from common.model import Contract, explain
from common.review import Level, Proposal
from common.revision import HINTS as HINTS_FIELD
from common.revision import CannotApply, apply, same, told, value_of
from common.task import Assignment, Change, SceneName, Task
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
_STEPS = "task.max_steps"
_CONSTRAINTS = "task.constraints"
_MOST_TOLD = 3
_PARTS = {"version", "rules", "limits"}

Type = Literal["integer", "number", "boolean", "text", "list of texts", "texts by name"]


class Limit(Contract):
    """What a scene takes as one of its constraints; another value only makes a dead letter."""

    type: Type
    min: int | float | None = None
    max: int | float | None = None
    one_of: tuple[str, ...] | None = None
    each: str | None = None
    """Regular expression of each text of a list, and of each name, as a whole."""
    nullable: bool = False
    only_with: dict[str, str] = Field(default_factory=dict)
    """There, and not empty, if and only if this other constraint has this value."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        _check_numbers(self.type, (self.min, self.max))
        if self.one_of is not None and self.type != "text":
            raise ValueError("one_of is a bound of a text")
        if self.each is not None and self.type not in ("list of texts", "texts by name"):
            raise ValueError("each is a bound of a list of texts, and of names")
        try:
            re.compile(self.each or "")
        except re.error as error:
            raise ValueError(f"each is no regular expression: {error}") from None
        return self


class Rule(Contract):
    """One entry of the table: what the level of some fields is, and within which bounds."""

    fields: tuple[str, ...] = Field(min_length=1)
    """`hints`, or `task.` and a path; one that ends in `.*` is everything below."""
    level: Level
    outside: Level = "red"
    """Of a value of the right type that is out of bounds."""
    type: Type | None = None
    min: int | float | None = None
    max: int | float | None = None
    times_original: float | None = Field(default=None, ge=1)
    """Of `task.max_steps`: from what it is now to so many times what the first revision had."""
    most_characters: int | None = Field(default=None, ge=0)
    """Of `hints`: so many are added at most."""
    approved: Literal["hints"] | None = None
    """Of `hints`: none but sentences of reviewer/hints.py are added, and none but them dropped."""
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
        _check_numbers(self.type, (self.min, self.max))
        if self.times_original is not None and (self.fields, self.type) != ((_STEPS,), "integer"):
            raise ValueError(f"times_original is a bound of {_STEPS}, an integer")
        texts = (self.most_characters, self.approved)
        of_hints = (self.fields, self.type) == ((HINTS_FIELD,), "list of texts")
        if not of_hints and texts != (None, None):
            raise ValueError("most_characters and approved are bounds of hints, a list of texts")
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
    options: tuple[JsonValue, ...] = ()
    """Those of the proposal that can be applied."""
    refused: str | None = None
    """Why it cannot be applied at all, whoever agrees."""


@dataclass(frozen=True)
class Policy:
    """The table, and what it depends on."""

    rules: tuple[Rule, ...]
    limits: Mapping[SceneName, Mapping[str, Limit]]
    """The constraints of each scene that the table knows."""
    people: int = 1
    """Different people who must approve a red change."""
    models: frozenset[str] = frozenset()
    """That a task may be given by a person's choice alone."""

    @classmethod
    def load(
        cls, path: Path | None = None, *, people: int = 1, models: Sequence[str] = ()
    ) -> Policy:
        """Read the table. Raises `ConfigurationError` naming file, rule and reason."""
        rules, limits = _read(path or TABLE)
        return cls(rules, limits, people, frozenset(models))

    def ruling(self, proposal: Proposal, assignment: Assignment) -> Ruling:
        """Say who must agree to ``proposal``, and whether it can be applied at all.

        The level depends on the field, its new value and the task alone: not on what the proposal
        says of itself.
        """
        ruling = self._rule(proposal.field, proposal.after, assignment)
        refused = self._refusal(proposal, proposal.after, assignment)
        options = tuple(o for o in proposal.options if not self._refusal(proposal, o, assignment))
        for option in options if refused is None else ():
            other = self._rule(proposal.field, option, assignment).level
            if _ORDER.index(other) > _ORDER.index(ruling.level):
                refused = f"it offers {told(option)}, which is {other}"
        return ruling.model_copy(update={"options": options, "refused": refused})

    def _refusal(self, proposal: Proposal, value: JsonValue, assignment: Assignment) -> str | None:
        """Say why ``value`` cannot be applied; None if the task and its scene would take it."""
        try:
            change = Change(
                field=proposal.field, before=proposal.before, after=value, reason="", level="red"
            )
            now = value_of(assignment, proposal.field)
            made = apply(assignment, [change])
            then = value_of(made, proposal.field)
        except CannotApply as error:
            return str(error)
        if same(now, then):
            return f"{proposal.field} is {told(now)} already"
        limits = self.limits.get(made.task.task_type)
        if limits is None or not _touches(proposal.field, _CONSTRAINTS):
            return None
        broken = sorted(_beyond_limits(limits, made.task.constraints))[:_MOST_TOLD]
        return f"the {made.task.scene} scene: {'; '.join(broken)}" if broken else None

    def _rule(self, field: str, after: JsonValue, assignment: Assignment) -> Ruling:
        found = next(((r, f) for r in self.rules for f in r.fields if _names(f, field)), None)
        if found is None:
            why = "no rule of the table names this field"
            return Ruling(level="red", rule="unknown", why=why, impact=_UNKNOWN, people=self.people)
        rule, name = found
        level, why = rule.level, rule.why
        if wrong := _wrong_type(rule.type, after):
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
        if broken := _beyond(rule.min, rule.max, after):
            return broken
        if rule.times_original is not None:
            now, first = assignment.task.max_steps, assignment.original_max_steps
            if broken := _beyond(now, int(rule.times_original * (first or now)), after):
                return broken
        if rule.approved == "hints" or rule.most_characters is not None:
            return _unlike_ours(rule, after, assignment.hints)
        if rule.allowed == "models" and after not in self.models:
            return f"{told(after)} is not among the models of this fleet"
        return None


def _check_numbers(type_: Type | None, bounds: tuple[float | None, ...]) -> None:
    if type_ not in ("integer", "number") and any(bound is not None for bound in bounds):
        raise ValueError("min and max are bounds of an integer or a number")


def _wrong_type(type_: Type | None, value: JsonValue) -> str | None:
    integer = isinstance(value, int) and not isinstance(value, bool)
    fits = {
        None: True,
        "boolean": isinstance(value, bool),
        "integer": integer,
        "number": integer or (isinstance(value, float) and isfinite(value)),
        "text": isinstance(value, str),
        "list of texts": isinstance(value, list) and all(isinstance(one, str) for one in value),
        "texts by name": isinstance(value, dict)
        and all(isinstance(one, str) for one in value.values()),
    }
    return None if fits[type_] else f"{told(value)} is no {type_}"


def _beyond(least: float | None, most: float | None, value: Any) -> str | None:
    if least is not None and value < least:
        return f"{told(value)} is less than {told(least)}"
    if most is not None and value > most:
        return f"{told(value)} is more than {told(most)}"
    return None


def _unlike_ours(rule: Rule, after: list[str], now: tuple[str, ...]) -> str | None:
    """Say what about new hints is not for rules to decide: what people wrote is theirs."""
    reviewed = set(HINTS.values())
    added = Counter(after) - Counter(now)
    if rule.approved == "hints":
        if not reviewed.issuperset(added):
            return "not all it adds is advice that was reviewed (reviewer/hints.py)"
        if set(now) - set(after) - reviewed:
            return "it drops what a person wrote"
    if rule.most_characters is not None and sum(map(len, added.elements())) > rule.most_characters:
        return f"it adds more than {rule.most_characters} characters"
    return None


def _beyond_limits(
    limits: Mapping[str, Limit], constraints: Mapping[str, JsonValue]
) -> Iterator[str]:
    """Yield what of a task's constraints its scene would not take."""
    for name in constraints.keys() - limits.keys():
        yield f"it knows no constraint {told(name)}"
    for name, limit in limits.items():
        value = constraints.get(name)
        absent = name not in constraints or (value is None and limit.nullable)
        if not absent and (wrong := _wrong(limit, value)):
            yield f"{name}: {wrong}"
        for other, needed in limit.only_with.items():
            if (constraints.get(other) == needed) != bool(value):
                yield f"{name} belong to {other} {needed}, which needs at least one"


def _wrong(limit: Limit, value: Any) -> str | None:
    """Say why a scene does not take ``value``, with what it takes."""
    wrong = _wrong_type(limit.type, value)
    if wrong is None and _beyond(limit.min, limit.max, value):
        return f"{told(value)} is not from {limit.min} to {limit.max}"
    if wrong is None and limit.one_of is not None and value not in limit.one_of:
        return f"{told(value)} is none of {', '.join(limit.one_of)}"
    if wrong is None and limit.each is not None:
        odd = next((one for one in value if not re.fullmatch(limit.each, one)), None)
        return None if odd is None else f"{told(odd)} is none it can use"
    return wrong


def _names(rule: str, field: str) -> bool:
    return field.startswith(rule[:-1]) if rule.endswith(".*") else field == rule


def _touches(rule: str, field: str) -> bool:
    """Could a change that ``rule`` names change anything of ``field``?"""
    rule = rule.removesuffix(".*")
    return rule == field or rule.startswith(field + ".") or field.startswith(rule + ".")


# -- reading --------------------------------------------------------------------------------------

_Entry = TypeVar("_Entry", Rule, Limit)


def _read(path: Path) -> tuple[tuple[Rule, ...], dict[SceneName, dict[str, Limit]]]:
    try:
        data = strict_yaml.parse(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict) or not {"version", "rules"} <= set(data) <= _PARTS:
        raise ConfigurationError(f"{path}: must hold `version`, `rules`, `limits`, nothing else")
    if data["version"] != 1:
        raise ConfigurationError(f"{path}: version: must be 1")
    return _rules(data["rules"], path), _limits(data.get("limits", {}), path)


def _rules(listed: Any, path: Path) -> tuple[Rule, ...]:
    if not isinstance(listed, list):
        raise ConfigurationError(f"{path}: rules: must be a list")
    rules, known = [], list[str]()
    for number, entry in enumerate(listed, start=1):
        where = f"{path}: rule {number}"
        if isinstance(entry, dict) and entry.get("fields"):
            where += f" ({told(entry['fields'])})"
        rule = _valid(Rule, entry, where)
        for name in rule.fields:
            if before := next((one for one in known if _names(one, name)), None):
                raise ConfigurationError(f"{where}: {name}: {before} goes before and hides it")
            known.append(name)
        rules.append(rule)
    return tuple(rules)


def _limits(data: Any, path: Path) -> dict[SceneName, dict[str, Limit]]:
    if not isinstance(data, dict) or not all(isinstance(one, dict) for one in data.values()):
        raise ConfigurationError(f"{path}: limits: must hold scenes and their constraints")
    if unknown := set(data) - {*SceneName}:
        raise ConfigurationError(f"{path}: limits: there is no scene {unknown.pop()!r}")
    return {
        SceneName(scene): {
            name: _valid(Limit, entry, f"{path}: limits of {scene}: {name}")
            for name, entry in listed.items()
        }
        for scene, listed in data.items()
    }


def _valid(kind: type[_Entry], entry: Any, where: str) -> _Entry:
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        what = "; ".join(f"{name}: {reason}" for name, reason in explain(error))
        raise ConfigurationError(f"{where}: {what}") from None
