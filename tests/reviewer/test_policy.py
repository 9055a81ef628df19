"""Who must agree to a change: nothing changes without a rule, and nobody's claim is one."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from common.review import Proposal
from common.revision import apply, value_of
from common.task import MAX_STEPS, Assignment, Change, Sampling, SceneName, Task
from reviewer.hints import HINTS
from reviewer.policy import ALWAYS_RED, Policy, Ruling
from tests.helpers import task
from workers.scenes.code_constraints import CodeConstraints

ADVICE = HINTS["timeout"]
OWN = "Use the calendar of 1582. " * 30
"""What a person wrote; longer than what may be added without anybody's word."""
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
        ("task.max_steps", 11, "green"),
        ("task.max_steps", 9, "red"),
        ("task.max_steps", 0, "red"),
        ("task.max_steps", 12.5, "red"),
        ("task.max_steps", True, "red"),
        ("task.constraints.retries", 2, "red"),
        ("task.constraints.step_timeout", 60, "red"),
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
        ("task.samples", 4, "red"),
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
    assert green == {
        "hints", "task.max_steps",
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


def test_no_change_of_steps_by_rules_alone_takes_any_away() -> None:
    raised = Assignment(task=task(max_steps=15), revision=2, original_max_steps=10)
    for after, expected in ((15, "green"), (14, "red"), (10, "red"), (1, "red")):
        assert ruled("task.max_steps", after, raised).level == expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ([OWN, ADVICE], "green"),
        ([ADVICE, OWN], "green"),
        ([OWN], "green"),
        ([ADVICE], "yellow"),
        ([], "yellow"),
        ([OWN.lower(), ADVICE], "yellow"),
        ([OWN, OWN], "yellow"),
        ([OWN, ADVICE, "Print 2."], "yellow"),
        ([OWN, *[ADVICE] * 10], "yellow"),
    ],
)
def test_what_a_person_wrote_is_neither_dropped_nor_added_to_by_rules_alone(
    after: list[str], expected: str
) -> None:
    told = Assignment(task=task(), revision=2, hints=(OWN, HINTS["error"]))
    assert ruled("hints", after, told).level == expected


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
        ("task.constraints.memory_mb", None, 999_999, "999999 is not from 64 to 8192"),
        ("task.constraints.memory_mb", None, 63, "63 is not from 64 to 8192"),
        ("task.constraints.disk_mb", None, 0, "from 1 to 4096"),
        ("task.constraints.pids", None, 7, "from 8 to 1024"),
        ("task.constraints.pids", None, "9", '"9" is no integer'),
        ("task.constraints.network", None, "host", "none of none, loopback, allowlist"),
        ("task.constraints.network", None, "allowlist", "needs at least one"),
        ("task.constraints.hosts", None, ["a.example.org"], "belong to network allowlist"),
        ("task.constraints", {}, {"network": "allowlist", "hosts": []}, "needs at least one"),
        ("task.constraints", {}, {"pids": 9, "memory_mb": 1}, "1 is not from 64 to 8192"),
        ("task.constraints.retries", None, 3, 'knows no constraint "retries"'),
    ],
)
def test_what_cannot_be_applied_is_asked_of_nobody(
    field: str, before: Any, after: Any, reason: str
) -> None:
    refused = ruled(field, after, before=before).refused
    assert refused is not None and reason in refused


def objection(constraints: Any) -> str | None:
    assignment = Assignment(task=task())
    return ruled("task.constraints", constraints, assignment, before={}).refused


LIMITED = st.fixed_dictionaries(
    {},
    optional={
        "network": st.sampled_from(["none", "loopback", "allowlist", "host"]),
        "hosts": st.lists(st.sampled_from(["a.example.org", "*.b.org", "a:80", "A.org", ""])),
        "memory_mb": st.integers(60, 68) | st.integers(8190, 8194) | st.just("64k"),
        "disk_mb": st.integers(-1, 2) | st.integers(4095, 4097),
        "pids": st.integers(6, 9) | st.integers(1023, 1025),
        "language": st.sampled_from(["bash", "perl", None]),
        "image": st.sampled_from(["python:3.12", 3, None]),
        "files": st.dictionaries(
            st.sampled_from(["a", "a/b", "/a", "../a", "a/..", "a/../b", "..a", "a..", "", "\0"]),
            st.sampled_from(["", "1"]), max_size=2,
        ) | st.just({"a": 1}),
        "python_packages": st.lists(st.just("numpy")) | st.just("numpy"),
        "only_expected_tools": st.booleans() | st.just([]),
        "colour": st.just("red"),
    },
).filter(bool)  # fmt: skip


@often
@given(LIMITED)
def test_what_the_table_lets_through_the_code_scene_takes_and_the_other_way_round(
    constraints: dict[str, Any],
) -> None:
    try:
        CodeConstraints.model_validate(constraints)
        taken = True
    except ValidationError:
        taken = False
    assert (objection(constraints) is None) == taken


def test_the_limits_name_every_constraint_of_the_code_scene() -> None:
    assert set(POLICY.limits) == {SceneName.CODE}
    assert set(POLICY.limits[SceneName.CODE]) == set(CodeConstraints.model_fields)


def test_a_network_and_its_hosts_come_and_go_together() -> None:
    open_ = {"network": "allowlist", "hosts": ["a.example.org"]}
    there = Assignment(task=task(constraints=open_))
    for name, before in open_.items():
        taken_away = ruled(f"task.constraints.{name}", None, there, before=before)
        assert taken_away.refused is not None
    more = ruled("task.constraints.hosts", ["b.example.org"], there, before=open_["hosts"])
    assert (more.level, more.refused) == ("red", None)
    assert ruled("task.constraints", {"pids": 9}, there, before=open_).refused is None


def test_other_scenes_are_not_held_to_the_limits_of_the_code_scene() -> None:
    of_web = Assignment(task=task(task_type="web"))
    assert ruled("task.constraints.memory_mb", 999_999, of_web).refused is None


def test_options_that_cannot_be_applied_are_offered_to_nobody() -> None:
    options: tuple[Any, ...] = (["hammer"], ["bash"], "python", [], ["python"])
    ruling = ruled("task.expected_tools", ["shell"], before=[], options=options)
    assert (ruling.options, ruling.refused) == ((["bash"], ["python"]), None)
    none_fits = ruled("task.expected_tools", ["hammer"], before=[], options=(["anvil"],))
    assert none_fits.options == ()
    assert none_fits.refused is not None and "hammer" in none_fits.refused
