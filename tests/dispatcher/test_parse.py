"""A bad line says what is wrong with it, and nothing a line holds stops the rest."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.task import Assignment
from dispatcher.parse import Bad, Work, parse
from tests.dispatcher.desk import line

GOOD = {"task_id": "a", "task_type": "code", "description": "Print 1."}


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


def with_metadata(text: str) -> bytes:
    return line("a", metadata={"x": "HERE"}).replace(b'"HERE"', text.encode())


def test_the_users_first_lines_are_welcome() -> None:
    got = parse(
        b'{"task_id":"code_001","task_type":"code_exec","description":"1+1","expected_tools":'
        b'["python_executor"],"constraints":{"language":"python"},"max_steps":5,"timeout":60,'
        b'"priority":8}\r'
    )
    assert isinstance(got, Work)
    assert (got.task.task_id, got.scene, got.task.lane) == ("code_001", "code", "hi")


def test_samples_become_one_assignment_each() -> None:
    got = parse(line("a", samples=3))
    assert isinstance(got, Work)
    made = [Assignment.model_validate_json(payload) for payload in got.new.payloads]
    assert [unit.unit for unit in made] == ["r1-s0", "r1-s1", "r1-s2"]
    assert made == [Assignment(task=got.task, sample=n) for n in range(3)]


def test_the_same_line_without_an_id_has_the_same_id() -> None:
    first, second, other = (parse(line(None, description=d)) for d in ("x", "x", "y"))
    assert isinstance(first, Work) and isinstance(second, Work) and isinstance(other, Work)
    assert first.task.task_id == second.task.task_id != other.task.task_id


@pytest.mark.parametrize("data", [b"", b"   ", b"\r", b"\t \r"])
def test_a_blank_line_is_nothing(data: bytes) -> None:
    assert parse(data) is None


@pytest.mark.parametrize(
    ("data", "field", "reason"),
    [
        (b'{"task_id": "a", ', "(line)", "not valid JSON at character 18"),
        (b"{'task_id': 'a'}", "(line)", "not valid JSON at character 2"),
        (b"[1]", "(line)", "one JSON object {…}; this is a list"),
        (b"null", "(line)", "this is null"),
        (b"12", "(line)", "this is a number"),
        (b'"text"', "(line)", "this is text"),
        (line("a", "cod"), "task_type", "unknown scene 'cod'; did you mean 'code'?; known: code"),
        (line("a", "mobile_agnt"), "task_type", "did you mean 'mobile_agent'?"),
        (line("a", max_step=3), "max_step", "unknown field; did you mean 'max_steps'?"),
        (line("a", xyzzy=3), "xyzzy", "unknown field"),
        (line("a", sampling={"temprature": 1}), "sampling.temprature", "mean 'temperature'?"),
        (line("a", checks=[{"type": "stdout", "expected": "", "mach": 1}]),
         "checks.0.stdout.mach", "mean 'match'?"),
        (line("a", reference={"actions": [{"tool": "x", "argments": {}}]}),
         "reference.actions.0.argments", "mean 'arguments'?"),
        (line("../../etc/x"), "task_id", "must be 1-128 letters"),
        (line(".."), "task_id", "not start with a dot"),
        (line("", "code"), "task_id", "must be 1-128"),
        (line("x" * 129), "task_id", "must be 1-128"),
        (line(5), "task_id", "valid string"),
        (line("a", timeout=0), "timeout", "greater than 0"),
        (line("a", priority=11), "priority", "less than or equal to 10"),
        (line("a", max_steps="many"), "max_steps", "valid integer"),
        (line("a", description=["x"]), "description", "valid string"),
        (line("a", constraints=[]), "constraints", "valid dictionary"),
        (line("a", expected_tools=["hammer"]), "expected_tools", "unknown tool 'hammer'"),
        (line("a", agent="oracle"), "(line)", "the task has none"),
        (line("a", description="a\0b"), "(line)", "NUL"),
        (line("a")[:9] + b"\0" + line("a")[9:], "(line)", "NUL byte at byte 10"),
        (b"\0" * 400 + line("a"), "(line)", "NUL byte at byte 1: was the file cut off"),
        (line("a").decode().encode("utf-16"), "(line)", "looks like UTF-16; save as UTF-8"),
        (line("a").decode().encode("utf-16-be"), "(line)", "looks like UTF-16; save as UTF-8"),
        (line("a", description="é").decode().encode("latin-1"), "(line)", "not UTF-8 at byte"),
        (with_metadata("NaN"), "(line)", "JSON has no NaN or Infinity"),
        (with_metadata("-Infinity"), "(line)", "JSON has no NaN or Infinity"),
        (with_metadata("1e999"), "(line)", "infinity"),
        (with_metadata("1" * 30), "(line)", f"number {'1' * 30} does not fit 64 bits"),
        (with_metadata("-" + "9" * 19), "(line)", "does not fit 64 bits"),
        (line("a", sampling={"seed": "9" * 30}), "sampling.seed", "less than 9223372036854775808"),
        (with_metadata(deep(101)), "(line)", "nested more than 100 levels"),
        (with_metadata(deep(900)), "(line)", "nested more than 100 levels"),
        (b"[" * 100_000, "(line)", "depth limit"),
        (deep(100_000).encode(), "(line)", "depth limit"),
        (with_metadata('"\\ud800"'), "(line)", "surrogate"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(data: bytes, field: str, reason: str) -> None:
    got = parse(data)
    assert isinstance(got, Bad)
    assert got.problems[0][0] == field
    assert reason in got.problems[0][1]


@pytest.mark.parametrize(
    "data",
    [
        with_metadata(str(2**64 - 1)),
        with_metadata(str(-(2**63))),
        with_metadata("0." + "3" * 40),
        with_metadata(deep(90)),
        line("a", metadata={"hash": "1" * 64}),
        b'{"task_id":"z",' + line("a")[1:],  # a key given twice: the last one counts
        line("任务-1"),
    ],
)
def test_what_is_unusual_but_right_goes_through(data: bytes) -> None:
    assert isinstance(parse(data), Work)


def test_every_problem_of_a_line_is_listed_with_its_id() -> None:
    got = parse(line("a", timeout=0, priority=11, max_step=1))
    assert isinstance(got, Bad)
    assert [field for field, _ in got.problems] == ["timeout", "priority", "max_step"]
    assert got.task_id == "a"


def test_a_line_of_unknown_fields_costs_no_time() -> None:
    got = parse(orjson.dumps({**GOOD, **{f"key {n}": n for n in range(20_000)}}))
    assert isinstance(got, Bad) and len(got.problems) == 10


_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=10) | st.sampled_from(sorted(GOOD)), inner, max_size=4)
    ),
    max_leaves=10,
)


@given(st.binary(max_size=200) | _JSON.map(lambda v: json.dumps(v).encode()))
def test_no_line_raises(data: bytes) -> None:
    parse(data)
    parse(data, utf16=True)


@given(st.sampled_from([*GOOD, "max_steps", "sampling", "checks", "reference", "metadata"]), _JSON)
def test_no_field_raises_and_what_passes_can_be_queued(field: str, value: Any) -> None:
    got = parse(json.dumps({**GOOD, field: value}).encode())
    if isinstance(got, Work):
        assert Assignment.model_validate_json(got.new.payloads[0]).task == got.task
