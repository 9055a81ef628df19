"""The whole fleet with the embedded model for real: small, but nothing about it is scripted."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.llm.fetch import place
from common.llm.weights import QWEN_CODER
from common.settings import load
from tests.e2e.fleet import attempts, decisions, fleet, read_tasks, write_tasks


@pytest.mark.embedded
def test_a_real_model_solves_easy_tasks_and_stays_out_of_exports(
    tmp_path: Path, repo: Path
) -> None:
    cache = load().cache
    if not place(cache, QWEN_CODER).exists():
        pytest.skip("its weights (0.5 GB) are not in the cache; `fleet model` fetches them")
    easy = read_tasks(repo / "tasks.jsonl")[:4]
    tasks = write_tasks(tmp_path / "t.jsonl", easy)
    out = tmp_path / "out"
    done = fleet("up", tasks, "-o", out, "--until-done", timeout=400, FLEET_CACHE=cache)
    assert done.returncode == 0, done.stderr
    # How many it solves is the model's affair; that every verdict is a check's is ours.
    assert set(decisions(out)) == {task["task_id"] for task in easy}
    accepted = [task for task, said in decisions(out).items() if said == "accepted"]
    assert accepted, "not one of four easy tasks: see docs/demo.md for what to expect"
    for found in attempts(out).values():
        for trajectory, review in found:
            assert trajectory.agent.model_source == "embedded"
            assert all(step.model_source == "embedded" for step in trajectory.steps)
            assert trajectory.usage.completion_tokens > 0
            assert review is not None
            assert trajectory.verdict.passed is not None
    assert "0 rows" in fleet("export", "sft", "-o", out).stdout
    rows = f"{len(accepted)} rows"
    assert rows in fleet("export", "sft", "-o", out, "--include-embedded").stdout
