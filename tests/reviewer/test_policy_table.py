"""The table of policy.yaml as a file: what says nonsense is refused by rule and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from common.failures import ConfigurationError
from common.review import Proposal
from common.task import Assignment
from reviewer.policy import ALWAYS_RED, TABLE, Policy
from tests.helpers import task


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
        ([entry(times_original=2, type="integer")], "bound of task.max_steps"),
        ([entry(approved="hints", type="list of texts")], "bounds of hints"),
        ([entry(fields=["hints"], most_characters=9, type="text")], "bounds of hints"),
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


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"kitchen": {}}, "there is no scene 'kitchen'"),
        ([], "must hold scenes"),
        ({"code": 1}, "must hold scenes"),
        ({"code": {"pids": {}}}, "limits of code: pids: type"),
        ({"code": {"pids": {"type": "text", "min": 1}}}, "bounds of an integer or a number"),
        ({"code": {"pids": {"type": "integer", "one_of": ["1"]}}}, "bound of a text"),
        ({"code": {"pids": {"type": "integer", "each": "1"}}}, "bound of a list of texts"),
        ({"code": {"pids": {"type": "text", "each": "("}}}, "bound of a list of texts"),
        ({"code": {"hosts": {"type": "list of texts", "each": "("}}}, "no regular expression"),
    ],
)
def test_limits_that_say_nonsense_are_refused_by_scene_and_reason(
    tmp_path: Path, limits: Any, reason: str
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "rules": [], "limits": limits}))
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


def test_what_stands_twice_is_refused_by_its_line(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    table = yaml.safe_dump({"version": 1, "rules": [entry()]}, sort_keys=False)
    file.write_text(table + "  level: green\n")
    with pytest.raises(ConfigurationError, match=r"policy\.yaml: .*line 8: 'level' is there twice"):
        Policy.load(file)


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
