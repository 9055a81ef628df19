"""What users write comes through whole, and what nobody declared is refused."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.task import (
    EXPECTED_TOOLS,
    SCENE_ALIASES,
    Assignment,
    Change,
    RevisionScore,
    SceneName,
    Task,
)
from tests.common.contracts import few, problems
from tests.helpers import task

# -- strategies: everything a line of tasks.jsonl may hold ----------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
SOME_TEXT = TEXT.filter(bool)
SHA = st.text("0123456789abcdef", min_size=64, max_size=64)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
LETTERS = st.characters(categories=["L", "Nd"], include_characters="._:-")
IDS = (
    st.text(LETTERS, min_size=1, max_size=50)
    | st.text("aZ09._:-", min_size=100, max_size=128)
    | st.sampled_from(["任务-01", "größe.1", "عمل", "Ωmega:2", "a..b"])
).filter(lambda name: not name.startswith("."))


def line_of(required: dict[str, Any], **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(required, optional=optional)


CHECKS = st.one_of(
    line_of(
        {"type": st.just("stdout"), "expected": TEXT},
        match=st.sampled_from(["exact", "lines", "contains", "regex"]),
        run=SOME_TEXT, stdin=TEXT, timeout=st.integers(1, 600),
    ),
    line_of(
        {"type": st.just("command"), "run": SOME_TEXT},
        files=st.dictionaries(TEXT, TEXT, max_size=2), exit_code=st.integers(0, 255), stdout=TEXT,
    ),
    line_of(
        {"type": st.just("file"), "path": SOME_TEXT},
        expected=TEXT, match=st.sampled_from(["exact", "json"]), sha256=SHA, exists=st.booleans(),
    ),
    line_of(
        {"type": st.just("answer"),
         "expected": TEXT | st.floats(-1e9, 1e9) | st.lists(TEXT, max_size=3)},
        match=st.sampled_from(["exact", "numeric", "regex", "set", "contains"]),
        tolerance=st.floats(0, 1), aliases=st.lists(TEXT, max_size=2), ignore_case=st.booleans(),
    ),
)  # fmt: skip
REFERENCES = line_of(
    {},
    actions=st.lists(
        line_of({"tool": SOME_TEXT}, arguments=st.dictionaries(TEXT, JSON, max_size=2)), max_size=2
    ),
    answer=TEXT,
)
SAMPLING = line_of(
    {},
    model=SOME_TEXT, temperature=st.floats(0, 2), top_p=st.floats(0.01, 1),
    seed=st.integers(-(2**31), 2**31), max_tokens=st.integers(1, 100_000),
)  # fmt: skip
LINES = line_of(
    {"task_type": st.sampled_from([*SceneName, *SCENE_ALIASES]), "description": SOME_TEXT},
    task_id=IDS,
    expected_tools=st.lists(st.sampled_from(list(EXPECTED_TOOLS)), max_size=3),
    constraints=st.dictionaries(TEXT, JSON, max_size=2),
    max_steps=st.integers(1, 500),
    timeout=st.integers(1, 86_400) | st.floats(0.01, 86_400),
    priority=st.integers(1, 10),
    checks=st.lists(CHECKS, max_size=3),
    reference=REFERENCES,
    sampling=SAMPLING,
    samples=st.integers(1, 64),
    threshold=st.integers(0, 100),
    max_iterations=st.integers(1, 10),
    metadata=st.dictionaries(TEXT, JSON, max_size=2),
)
TASKS = LINES.map(Task.model_validate)

# -- tasks ----------------------------------------------------------------------------------------


@few
@given(LINES)
def test_a_task_survives_every_trip_through_json(line: dict[str, Any]) -> None:
    first = Task.model_validate_json(orjson.dumps(line))
    again = Task.model_validate_json(first.model_dump_json())
    assert again == first
    assert again.sha256 == first.sha256
    assert Task.model_validate(orjson.loads(orjson.dumps(first.model_dump(mode="json")))) == first
    for name, said in line.items():
        if name not in ("task_type", "checks", "reference", "sampling"):
            assert json.loads(json.dumps(first.model_dump(mode="json")[name])) == said


ANOTHER: dict[str, Any] = {
    "task_id": "u", "task_type": "reasoning", "description": "Print 2.",
    "expected_tools": ["python"], "constraints": {"memory_mb": 64}, "max_steps": 11,
    "timeout": 299.5, "priority": 6, "checks": [{"type": "stdout", "expected": "1"}],
    "reference": {"answer": "1"}, "agent": "nop", "sampling": {"seed": 0}, "samples": 2,
    "threshold": 81, "max_iterations": 2, "resumable": False, "metadata": {"a": None},
}  # fmt: skip


@pytest.mark.parametrize("field", sorted(Task.model_fields))
def test_the_sha256_of_a_task_changes_with_each_of_its_fields(field: str) -> None:
    fields = {"task_id": "t", field: ANOTHER[field]}
    assert task(**fields).sha256 != task().sha256
    assert task(**fields).sha256 == task(**fields).sha256


@few
@given(LINES, LINES)
def test_a_line_without_an_id_always_gets_the_same_and_another_line_another(
    line: dict[str, Any], other: dict[str, Any]
) -> None:
    line, other = ({**x, "task_id": None} for x in (line, other))
    name = Task.model_validate(line).task_id
    assert Task.model_validate_json(orjson.dumps(line)).task_id == name
    assert Task.model_validate(dict(reversed(line.items()))).task_id == name
    assert Task.model_validate({**line, "description": line["description"] + "."}).task_id != name
    scene, its = (SCENE_ALIASES.get(x["task_type"], x["task_type"]) for x in (line, other))
    if scene != its or {**line, "task_type": scene} != {**other, "task_type": its}:
        assert Task.model_validate(other).task_id != name


FULL = {
    "task_id": "t", "task_type": "code", "description": "d",
    "checks": [
        {"type": "stdout", "expected": ""}, {"type": "command", "run": "true"},
        {"type": "file", "path": "a"}, {"type": "answer", "expected": "1"},
    ],
    "reference": {"actions": [{"tool": "run_python", "arguments": {"anything": "goes"}}]},
    "sampling": {"seed": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [(), ("sampling",), ("reference",), ("reference", "actions", 0),
     ("checks", 0), ("checks", 1), ("checks", 2), ("checks", 3)],
)  # fmt: skip
def test_an_unknown_key_is_refused_by_name_wherever_it_is(path: tuple[str | int, ...]) -> None:
    Task.model_validate(FULL)
    line = json.loads(json.dumps(FULL))
    place = line
    for part in path:
        place = place[part]
    place["surprise"] = 1
    [(field, reason)] = problems(Task, line)
    assert field.startswith(".".join(str(part) for part in path))
    assert (field.split(".")[-1], reason) == ("surprise", "unknown field")


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"task_id": "../../etc/x"}, "task_id", "letters, digits"),
        ({"task_id": "a/b"}, "task_id", "letters, digits"),
        ({"task_id": "a\n"}, "task_id", "letters, digits"),
        ({"task_id": "a\0"}, "task_id", "letters, digits"),
        ({"task_id": ".hidden"}, "task_id", "not start with a dot"),
        ({"task_id": ".."}, "task_id", "not start with a dot"),
        ({"task_id": "x" * 129}, "task_id", "1-128"),
        ({"task_id": "务" * 67}, "task_id", "at most 200 bytes"),
        ({"task_id": ""}, "task_id", "1-128"),
        ({"task_id": 5}, "task_id", "valid string"),
        ({"description": ""}, "description", "at least 1 character"),
        ({"description": "a\0b"}, "(line)", "description holds a NUL"),
        ({"description": "\ud800"}, "description", "valid string"),
        ({"timeout": 0}, "timeout", "greater than 0"),
        ({"timeout": float("nan")}, "timeout", "finite"),
        ({"timeout": 86_401}, "timeout", "86400"),
        ({"priority": 11}, "priority", "less than or equal to 10"),
        ({"priority": 0}, "priority", "greater than or equal to 1"),
        ({"max_steps": 0}, "max_steps", "greater than or equal to 1"),
        ({"max_steps": 501}, "max_steps", "less than or equal to 500"),
        ({"samples": 65}, "samples", "less than or equal to 64"),
        ({"threshold": 101}, "threshold", "less than or equal to 100"),
        ({"max_iterations": 0}, "max_iterations", "greater than or equal to 1"),
        ({"task_type": "cod"}, "task_type", "'code', 'web'"),
        ({"task_type": "CODE"}, "task_type", "'code', 'web'"),
        ({"agent": "robot"}, "agent", "'llm', 'oracle' or 'nop'"),
        ({"agent": "oracle"}, "(line)", "plays the reference, but the task has none"),
        ({"sampling": {"temperature": 2.1}}, "sampling.temperature", "less than or equal to 2"),
        ({"sampling": {"top_p": 0}}, "sampling.top_p", "greater than 0"),
        ({"checks": [{"type": "magic"}]}, "checks.0", "'stdout', 'command', 'file', 'answer'"),
        ({"checks": [{"expected": "1"}]}, "checks.0", "discriminator 'type'"),
        ({"checks": [{"type": "command", "run": ""}]}, "checks.0.command.run", "at least 1"),
        ({"checks": [{"type": "stdout", "expected": "", "timeout": 601}]},
         "checks.0.stdout.timeout", "less than or equal to 600"),
        ({"checks": [{"type": "file", "path": "a", "sha256": "AB"}]},
         "checks.0.file.sha256", "pattern"),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused_naming_the_field(
    fields: dict[str, Any], field: str, reason: str
) -> None:
    line = {"task_id": "t", "task_type": "code", "description": "d", **fields}
    [(named, why)] = problems(Task, line)
    assert named == field
    assert reason in why


@pytest.mark.parametrize(
    "name", ["x" * 128, "é" * 100, "务" * 66, "任务-01", "a:b.c_d-e", "1", "_", "-x", "a.."]
)
def test_a_good_id_is_kept_as_it_is(name: str) -> None:
    assert task(name).task_id == name


def test_the_users_scene_names_are_mapped() -> None:
    assert {name: task(task_type=name).scene for name in SCENE_ALIASES} == {
        "code_exec": "code", "mobile_agent": "mobile", "mcp_tool": "toucan",
    }  # fmt: skip
    assert {task(task_type=scene.value).scene for scene in SceneName} == {
        s.value for s in SceneName
    }


def test_an_unknown_tool_is_refused_with_the_list_of_known_ones() -> None:
    line = {"task_type": "code", "description": "d", "expected_tools": ["python", "pyhton"]}
    [(field, reason)] = problems(Task, line)
    assert field == "expected_tools"
    assert "'pyhton'" in reason
    assert all(name in reason for name in EXPECTED_TOOLS)


def test_the_users_tools_are_shown_by_our_names_in_their_order_and_once() -> None:
    wanted = task(expected_tools=["bash", "code_executor", "python_executor", "file_editor"])
    assert wanted.tools_to_show() == ("run_shell", "run_python", "read_file", "write_file")


@pytest.mark.parametrize(
    ("priorities", "lane"), [(range(8, 11), "hi"), (range(4, 8), "mid"), (range(1, 4), "lo")]
)
def test_the_priority_leads_to_a_lane(priorities: range, lane: str) -> None:
    assert {task(priority=p).lane for p in priorities} == {lane}


def test_a_contract_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        task().priority = 1  # type: ignore[misc]


# -- assignments ----------------------------------------------------------------------------------

CHANGES = st.builds(
    Change,
    field=SOME_TEXT, before=JSON, after=JSON, reason=TEXT,
    level=st.sampled_from(["green", "yellow", "red"]),
)  # fmt: skip
SCORES = st.builds(
    RevisionScore,
    revision=st.integers(1, 10), attempt_id=SOME_TEXT,
    score=st.none() | st.integers(0, 100), passed=st.none() | st.booleans(),
)  # fmt: skip


@few
@given(
    st.builds(
        Assignment,
        task=TASKS,
        revision=st.integers(1, 10),
        sample=st.integers(0, 63),
        hints=st.lists(TEXT, max_size=2).map(tuple),
        changes=st.lists(CHANGES, max_size=2).map(tuple),
        history=st.lists(SCORES, max_size=2).map(tuple),
        original_max_steps=st.none() | st.integers(1, 500),
    )
)
def test_an_assignment_survives_the_stream(assignment: Assignment) -> None:
    read = Assignment.model_validate_json(assignment.encode())
    assert read == assignment
    assert read.task.sha256 == assignment.task.sha256
    assert read.encode() == assignment.encode()
