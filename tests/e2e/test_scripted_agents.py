"""The whole fleet with agents that need no model: everything but the model is real."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from common.store import Store
from tests import humaneval
from tests.e2e.fleet import attempts, decisions, fleet, printing, write_tasks


def test_the_oracle_gets_all_24_example_tasks_accepted(tmp_path: Path, repo: Path) -> None:
    out = tmp_path / "out"
    done = fleet("up", repo / "tasks.jsonl", "-o", out, "--agent", "oracle", "--until-done")
    assert done.returncode == 0, done.stderr + done.stdout
    assert Counter(decisions(out).values()) == {"accepted": 24}
    for found in attempts(out).values():
        [(trajectory, _)] = found
        assert trajectory.success is True
        assert trajectory.environment.backend == "nsjail"
        assert trajectory.environment.limits
        assert trajectory.agent.kind == "oracle"

    for name in ("a", "b"):
        done = fleet("export", "sft", "-o", out, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert len(rows) == 24
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert all(row["messages"][0]["role"] == "system" and row["tools"] for row in rows)

    done = fleet("export", "raw", "-o", out, "--out", tmp_path / "raw")
    raw = [json.loads(line) for line in (tmp_path / "raw").read_text().splitlines()]
    store = Store(out)
    for row in raw:
        t = row["trajectory"]
        path = store.attempt_path(t["task_id"], t["attempt_id"])
        assert json.loads(path.read_bytes()) == t


def test_an_agent_that_does_nothing_gets_nothing_accepted(tmp_path: Path, repo: Path) -> None:
    done = fleet("up", repo / "tasks.jsonl", "-o", tmp_path, "--agent", "nop", "--until-done")
    assert done.returncode == 0, done.stderr
    assert Counter(decisions(tmp_path).values()) == {"rejected": 24}
    assert "0 rows" in fleet("export", "sft", "-o", tmp_path).stdout


@pytest.mark.parametrize(("agent", "decision"), [("oracle", "accepted"), ("nop", "rejected")])
def test_humaneval_through_the_whole_fleet(tmp_path: Path, agent: str, decision: str) -> None:
    tasks = write_tasks(tmp_path / "humaneval.jsonl", humaneval.tasks())
    out = tmp_path / "out"
    done = fleet(
        "up", tasks, "-o", out, "--agent", agent, "--until-done", "--workers", 2, timeout=400
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert Counter(decisions(out).values()) == {decision: 164}


def test_a_task_without_checks_runs_and_stays_unverified(tmp_path: Path) -> None:
    unchecked = printing("unchecked") | {"checks": []}
    tasks = write_tasks(tmp_path / "t.jsonl", [unchecked, printing("checked")])
    out = tmp_path / "out"
    done = fleet("up", tasks, "-o", out, "--agent", "oracle", "--until-done")
    assert done.returncode == 0, done.stderr
    assert "1 came to no verdict" in done.stdout
    assert decisions(out) == {"unchecked": "human", "checked": "accepted"}
    assert "1 rows" in fleet("export", "sft", "-o", out).stdout
    assert "2 rows" in fleet("export", "sft", "-o", out, "--include-unverified").stdout


def test_samples_are_independent_attempts_of_one_task(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "t.jsonl", [printing("three", samples=3)])
    out = tmp_path / "out"
    assert fleet("up", tasks, "-o", out, "--agent", "oracle", "--until-done").returncode == 0
    found = attempts(out)["three"]
    assert sorted(t.sample for t, _ in found) == [0, 1, 2]
    assert all(r is not None and r.decision == "accepted" for _, r in found)


def test_a_second_run_over_the_same_folder_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "t.jsonl", [printing("one")])
    out = tmp_path / "out"
    assert fleet("up", tasks, "-o", out, "--agent", "oracle", "--until-done").returncode == 0
    with tasks.open("a") as file:
        file.write(json.dumps(printing("two")) + "\n")
    assert fleet("up", tasks, "-o", out, "--agent", "oracle", "--until-done").returncode == 0
    assert {task: len(found) for task, found in attempts(out).items()} == {"one": 1, "two": 1}


def test_validate_proves_the_examples_and_names_what_is_broken(tmp_path: Path, repo: Path) -> None:
    good = fleet("validate", repo / "tasks.jsonl")
    assert good.returncode == 0, good.stdout
    assert "24 of 24 tasks proven" in good.stdout

    broken = write_tasks(
        tmp_path / "broken.jsonl",
        [
            printing("wrong-reference", checks=[{"type": "stdout", "expected": "43"}]),
            printing("too-easy", checks=[{"type": "file", "path": "nothing", "exists": False}]),
            printing("no-scene", task_type="web"),
            printing("bad-constraint", constraints={"memory": 1}),
            {"task_type": "code", "description": "x", "max_step": 3},
            printing("fine"),
        ],
    )
    done = fleet("validate", broken)
    assert done.returncode == 1
    for words in (
        "its reference fails", "an agent that does nothing passes", "no scene 'web'",
        "constraints.memory: unknown field", "max_step: unknown field; did you mean 'max_steps'?",
        "1 of 6 tasks proven",
    ):  # fmt: skip
        assert words in done.stdout, done.stdout
