"""Who must agree to a change: nothing changes without a rule, and nobody's claim is one."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from common.failures import ConfigurationError
from common.review import Proposal
from common.revision import apply, value_of
from common.task import MAX_STEPS, Assignment, Change, Sampling, Task
from reviewer.hints import HINTS
from reviewer.policy import ALWAYS_RED, TABLE, Policy, Ruling
from tests.helpers import task
from workers.scenes.code_constraints import CodeConstraints

ADVICE = HINTS["timeout"]
POLICY = Policy.load(people=2, models=["small", "big"])
often = settings(max_examples=300, deadline=None)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
KNOWN = [
    "hints",
    *(f"task.{name}" for name in Task.model_fields),
    *(f"task.sampling.{name}" for name in Sampling.model_fields),
    *(f"task.constraints.{name}" for name in CodeConstraints.model_fields),
]
FIELDS = st.sampled_from(KNOWN) | st.text() | st.text().map("task.".__add__)


def ruled(field: str, after: Any, assignment: Assignment | None = None, **said: Any) -> Ruling:
    proposal = Proposal(field=field, after=after, **{"reason": "level: green", **said})
    return POLICY.ruling(proposal, assignment or Assignment(task=task(max_steps=10)))


@pytest.mark.parametrize(
    ("field", "after", "expected"),
    [
        ("task.sampling.temperature", 0, "green"),
        ("task.sampling.temperature", 1.2, "green"),
        ("task.sampling.temperature", 1.21, "red"),
        ("task.sampling.temperature", -0.1, "red"),
        ("task.sampling.temperature", "hot", "red"),
        ("task.sampling.temperature", True, "red"),
        ("task.sampling.temperature", None, "red"),
        ("task.sampling.temperature", 10**400, "red"),
        ("task.sampling.top_p", 1.0, "green"),
        ("task.sampling.top_p", 0.0, "red"),
        ("task.sampling.seed", 7, "green"),
        ("task.sampling.seed", 2**63, "red"),
        ("task.sampling.seed", "x", "red"),
        ("task.max_steps", 20, "green"),
        ("task.max_steps", 21, "red"),
        ("task.max_steps", 0, "red"),
        ("task.max_steps", 12.5, "red"),
        ("task.max_steps", True, "red"),
        ("task.constraints.retries", 2, "red"),  # the task says nothing of retries
        ("hints", [ADVICE], "green"),
        ("hints", [], "green"),
        ("hints", [ADVICE, "The answer is 42."], "yellow"),
        ("hints", [ADVICE] * 10, "yellow"),
        ("hints", "The answer is 42.", "red"),
        ("hints", [[ADVICE]], "red"),
        ("task.description", "Print 2.", "yellow"),
        ("task.description", 2, "red"),
        ("task.expected_tools", ["python"], "yellow"),
        ("task.constraints.only_expected_tools", True, "yellow"),
        ("task.constraints.only_expected_tools", 1, "red"),
        ("task.sampling.model", "big", "yellow"),
        ("task.sampling.model", "bigger", "red"),
        ("task.sampling.max_tokens", 4096, "yellow"),
        ("task.sampling.max_tokens", 10**8, "red"),
        ("task.samples", 4, "green"),
        ("task.samples", 5, "red"),
        ("task.checks.0.expected", "2", "red"),
        ("task.constraints.mounts", ["/"], "red"),
        ("task.sampling", {"temperature": 0.5}, "red"),
        ("max_steps", 11, "red"),
        ("task.max_stepS", 11, "red"),
        ("task.max_steps.", 11, "red"),
        ("task.sampling.temperature ", 0.5, "red"),
        ("", None, "red"),
    ],
)
def test_the_field_and_its_bounds_decide_who_must_agree(
    field: str, after: Any, expected: str
) -> None:
    ruling = ruled(field, after)
    assert ruling.level == expected, ruling.why
    assert ruling.people == {"green": 0, "yellow": 1, "red": 2}[expected]
    assert ruling.why and ruling.impact


@often
@given(FIELDS, JSON, JSON, st.sampled_from(["green", "yellow", "red", None]), st.text())
def test_what_a_proposal_says_of_itself_never_moves_its_level(
    field: str, after: Any, before: Any, claimed: Any, text: str
) -> None:
    plain = ruled(field, after)
    told = ruled(field, after, claimed=claimed, level="green", before=before, reason=text, by=text)
    assert (told.level, told.rule, told.people) == (plain.level, plain.rule, plain.people)
    if any(field == red or field.startswith(f"{red}.") for red in ALWAYS_RED):
        assert told.level == "red"


@often
@given(FIELDS, JSON)
def test_what_is_not_refused_can_be_applied_and_is_then_what_was_wanted(
    field: str, after: Any
) -> None:
    before = Assignment(task=task())
    now = None if field not in KNOWN or "samples" in field else _now(before, field)
    if ruled(field, after, before, before=now).refused is None:
        change = Change(field=field, before=now, after=after, reason="", level="red")
        made = apply(before, [change])
        assert made != before
        assert Assignment.model_validate_json(made.encode()) == made


def _now(assignment: Assignment, field: str) -> Any:
    try:
        return value_of(assignment, field)
    except ValueError:
        return None


def test_the_table_names_every_field_of_a_task_and_of_the_code_scene() -> None:
    named = {field for rule in POLICY.rules for field in rule.fields}
    assert set(KNOWN) <= named
    green = {f for rule in POLICY.rules if rule.level == "green" for f in rule.fields}
    assert {f for f in green if f in KNOWN} == {
        "hints", "task.max_steps", "task.samples",
        "task.sampling.temperature", "task.sampling.top_p", "task.sampling.seed",
    }  # fmt: skip
    most = next(rule.max for rule in POLICY.rules if "task.max_steps" in rule.fields)
    assert most == MAX_STEPS


def test_any_two_hints_of_the_list_are_short_enough_to_be_green() -> None:
    for pair in combinations(HINTS.values(), 2):
        assert ruled("hints", [*pair]).level == "green"


@often
@given(
    st.sampled_from(["hints", "task.description", "task.expected_tools"]),
    JSON | st.text() | st.lists(st.text()),
)
def test_what_a_person_may_write_stays_yellow_whatever_he_writes(field: str, written: Any) -> None:
    asked = "Read twice." if field == "task.description" else ["bash"]
    assignment = Assignment(task=task())
    now = value_of(assignment, field)
    assert ruled(field, asked, assignment, before=now).editable
    edited = ruled(field, written, assignment, before=now)
    assert edited.level != "red" or edited.refused is not None


def test_wording_is_for_people_to_write_and_models_are_not() -> None:
    assert ruled("task.description", "Print 2.").editable
    assert ruled("hints", ["Read twice."]).editable
    assert not ruled("hints", [ADVICE]).editable, "nobody is asked"
    assert not ruled("task.sampling.model", "big").editable


def test_an_option_that_needs_more_people_than_the_proposal_spoils_it() -> None:
    assert ruled("task.sampling.model", "big", options=("small",)).refused is None
    spoiled = ruled("task.sampling.model", "big", options=("small", "strange"))
    assert spoiled.level == "yellow"
    assert spoiled.refused is not None and "strange" in spoiled.refused


def test_steps_are_counted_from_the_first_revision_so_that_doubling_does_not_repeat() -> None:
    doubled = Assignment(task=task(max_steps=20), revision=2, original_max_steps=10)
    for after, expected in ((20, "green"), (21, "red"), (40, "red")):
        assert ruled("task.max_steps", after, doubled).level == expected
    most = Assignment(task=task(max_steps=400))
    for after, expected in ((500, "green"), (501, "red"), (800, "red")):
        assert ruled("task.max_steps", after, most).level == expected


def test_what_else_may_double_does_so_in_the_first_revision_only() -> None:
    patient = task(constraints={"step_timeout": 30})
    for revision, after, expected in ((1, 60, "green"), (1, 61, "red"), (2, 60, "red")):
        assignment = Assignment(task=patient, revision=revision)
        assert ruled("task.constraints.step_timeout", after, assignment).level == expected


@pytest.mark.parametrize(
    ("field", "before", "after", "reason"),
    [
        ("task.task_id", "t", "u", "another task"),
        ("task.agent", "llm", "oracle", "another task"),
        ("task.samples", 1, 2, "another task"),
        ("task.metadata", {}, {"a": 1}, "another task"),
        ("task.colour", None, "red", "no field"),
        ("task.constraints.", None, 1, "no path"),
        ("max_steps", None, 11, "no field"),
        ("task.max_steps", 9, 12, "is 10 by now, not 9"),
        ("task.max_steps", 10, 10, "already"),
        ("task.max_steps", 10, "12", "would be 12"),
        ("task.priority", 5, True, "would be 1"),
        ("task.description", "Print 1.", "", "at least 1 character"),
        ("task.expected_tools", [], ["hammer"], "unknown tool 'hammer'"),
        ("hints", [], "x", "list of sentences"),
        ("task.checks.0.expected", None, "2", "holds no fields"),
        ("task.constraints.memory_mb", None, 2**70, "could not be stored"),
        ("task.constraints.memory_mb", None, "\ud800", "could not be stored"),
    ],
)
def test_what_cannot_be_applied_is_asked_of_nobody(
    field: str, before: Any, after: Any, reason: str
) -> None:
    refused = ruled(field, after, before=before).refused
    assert refused is not None and reason in refused


# -- the file -------------------------------------------------------------------------------------


def entry(**fields: Any) -> dict[str, Any]:
    return {"fields": ["task.priority"], "level": "red", "why": "w", "impact": "i", **fields}


@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ([entry(), entry(level="purple")], "rule 2 .*priority.*: level"),
        ([entry(color=1)], "rule 1 .*: color: unknown field"),
        ([entry(fields=[])], "rule 1: fields"),
        ([entry(fields=["task.colour"])], "'task.colour' is no field of a task"),
        ([entry(fields=["priority"])], "'priority' is no field of a task"),
        ([entry(), entry()], "rule 2 .*: task.priority goes before and hides it"),
        ([entry(fields=["task.sampling.*", "task.sampling.seed"])], "hides it"),
        ([entry(fields=["task.checks"], level="green")], "task.checks must be red"),
        ([entry(fields=["task.constraints.*"], level="yellow")], "must be red"),
        ([entry(fields=["task.checks.0.expected"], level="yellow")], "must be red"),
        ([entry(level="yellow", outside="green")], "outside: "),
        ([entry(level="yellow", editable=True, type="text")], "editable: "),
        ([entry(min=1)], "bounds of an integer or a number"),
        ([entry(approved="hints", type="text")], "bounds of a list of texts"),
        ([entry(allowed="models")], "allowed is a bound of a text"),
        ([entry(impact="")], "impact"),
        (["red"], "rule 1: "),
        ("red", "rules: must be a list"),
    ],
)
def test_a_table_that_says_nonsense_is_refused_by_rule_and_reason(
    tmp_path: Path, rules: Any, reason: str
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "rules": rules}))
    with pytest.raises(ConfigurationError, match=reason) as told:
        Policy.load(file)
    assert str(told.value).startswith(f"{file}: ")


@pytest.mark.parametrize("text", ["rules: [", "- 1", "version: 2\nrules: []", "version: 1"])
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"policy\.yaml: "):
        Policy.load(file)
    with pytest.raises(ConfigurationError, match=r"none\.yaml: cannot be read"):
        Policy.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("red", ALWAYS_RED)
def test_no_table_can_make_verifiers_limits_and_budgets_less_than_red(
    tmp_path: Path, red: str
) -> None:
    file = tmp_path / "policy.yaml"
    for field in (red, f"{red}.*", f"{red}.x", f"{red.rpartition('.')[0]}.*"):
        rules = [entry(fields=[field], level="yellow")]
        file.write_text(yaml.safe_dump({"version": 1, "rules": rules}))
        with pytest.raises(ConfigurationError):
            Policy.load(file)
    without = [r for r in yaml.safe_load(TABLE.read_text())["rules"] if red not in r["fields"]]
    file.write_text(yaml.safe_dump({"version": 1, "rules": without}))
    silent = Policy.load(file).ruling(
        Proposal(field=red, after=1, reason=""), Assignment(task=task())
    )
    assert silent.level == "red"
