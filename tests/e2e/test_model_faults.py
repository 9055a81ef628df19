"""The whole fleet with a scripted OpenAI-compatible server over real HTTP, and all its faults.

The stand-in says what a model would; everything else is real. Each fault must end in the right
failure class, and no task may be lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.failures import FailureClass, FailureKind
from common.trajectory import StopReason, Trajectory
from tests.e2e.fleet import (
    attempts,
    counters,
    decisions,
    end,
    environment,
    fleet,
    printing,
    process,
    wait_until,
    write_tasks,
)

RIGHT = [
    {"tool": "run_python", "arguments": {"code": "print(6 * 7)"}},
    {"tool": "finish", "arguments": {"answer": "42"}},
]
WRONG = [
    {"tool": "run_python", "arguments": {"code": "print(41)"}},
    {"tool": "finish", "arguments": {"answer": "41"}},
]


@contextmanager
def standin(folder: Path, script: dict[str, Any]) -> Iterator[dict[str, str]]:
    """The stand-in as a process; yields the settings that point the fleet at it."""
    script = {"*": {"turns": [{"text": "ready"}]}, **script}
    path = folder / "script.json"
    path.write_text(json.dumps(script))
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.standin", "--script", str(path)],
        env=environment(), stdout=subprocess.PIPE,
    )  # fmt: skip
    assert running.stdout is not None
    try:
        url = json.loads(running.stdout.readline())["url"]
        yield {"FLEET_LLM_BASE_URL": url, "FLEET_LLM_MODEL": "standin-1"}
    finally:
        end(running)


def test_every_fault_ends_in_the_right_class_and_no_task_is_lost(tmp_path: Path) -> None:
    script: dict[str, Any] = {
        "fine": {"turns": RIGHT},
        "wrong": {"turns": WRONG},
        # Once: the client gets over it.
        "limited-once": {"turns": RIGHT, "faults": {"1": "429:0.3"}},
        "error-once": {"turns": RIGHT, "faults": {"1": "500"}},
        "cut-once": {"turns": RIGHT, "faults": {"2": "cut"}},
        "malformed-once": {"turns": RIGHT, "faults": {"1": "broken_json"}},
        "html-once": {"turns": RIGHT, "faults": {"2": "html"}},
        # Once, and longer than a call may take: infrastructure, tried again as a new attempt.
        "stall-once": {"turns": RIGHT, "faults": {"1": "stall"}},
        # Always: infrastructure, until the retry budget is spent.
        "error-always": {"turns": RIGHT, "faults": {"*": "503"}},
        # The model's own doing: valid, failed trajectories.
        "nonsense": {"turns": RIGHT, "faults": {"*": "nonsense"}},
        "wrong-tool": {"turns": RIGHT, "faults": {"*": "wrong_tool"}},
        "bad-arguments": {"turns": RIGHT, "faults": {"*": "bad_arguments"}},
        "cut-off": {"turns": RIGHT, "faults": {"*": "length"}},
        "too-long": {"turns": RIGHT, "faults": {"*": "400"}},
        # One slip is shown back and mended (it takes the place of the first scripted turn).
        "slip": {"turns": [RIGHT[0], *RIGHT], "faults": {"1": "wrong_tool"}},
    }
    tasks = write_tasks(tmp_path / "t.jsonl", [printing(name) for name in script])
    out = tmp_path / "out"
    with standin(tmp_path, script) as settings:
        done = fleet(
            "up", tasks, "-o", out, "--until-done", timeout=180, **settings,
            FLEET_LLM_DEADLINE=4, FLEET_MAX_RETRIES=1,
        )  # fmt: skip
    assert done.returncode == 1, done.stderr  # a dead letter
    assert "1 dead letter" in done.stdout

    said = decisions(out)
    got_over = {"fine", "limited-once", "error-once", "cut-once", "malformed-once", "html-once",
                "stall-once", "slip"}  # fmt: skip
    models_own = {"wrong", "nonsense", "wrong-tool", "bad-arguments", "cut-off", "too-long"}
    infrastructure = {"error-always"}
    assert {t for t, d in said.items() if d == "accepted"} == got_over
    assert {t for t, d in said.items() if d == "rejected"} == models_own
    assert {t for t, d in said.items() if d == "none"} == infrastructure
    assert set(script) == got_over | models_own | infrastructure

    found = attempts(out)
    for name in models_own - {"wrong"}:
        [(trajectory, review)] = found[name]
        assert trajectory.stop_reason is StopReason.FAILURE
        assert trajectory.failure is not None
        assert trajectory.failure.kind is FailureKind.MODEL_ERROR
        assert review is not None
        assert review.score is not None
        assert review.score <= 49
    # Kept as evidence: the first try, and the one retry it had a right to.
    assert len(found["error-always"]) == 2
    for trajectory, review in found["error-always"]:
        assert_infrastructure(trajectory, FailureKind.NETWORK_ERROR)
        assert review is None
    first, second = (t for t, _ in found["stall-once"])
    assert first.failure is not None
    assert first.failure.kind is FailureKind.NETWORK_ERROR
    assert second.success
    [(limited, _)] = found["limited-once"]
    assert limited.throttled >= 0.3
    [(slip, _)] = found["slip"]
    assert slip.malformed_answers == 1

    for name in got_over:
        trajectory = found[name][-1][0]
        assert trajectory.agent.model_source == "standin"
        assert trajectory.messages[0]["role"] == "system"
        # What the model was sent last is the chat as stored, up to its last answer.
        assert [m["role"] for m in trajectory.messages][-1] == "assistant"
    export = fleet("export", "sft", "-o", out, "--include-embedded", "--include-unverified")
    assert export.stdout.startswith("0 rows")


def test_a_limit_that_never_lifts_ends_as_a_dead_letter_after_its_waits(tmp_path: Path) -> None:
    # In a fleet of its own: all tasks share one provider key, and its limit with it.
    tasks = write_tasks(tmp_path / "t.jsonl", [printing("limited")])
    out = tmp_path / "out"
    with standin(tmp_path, {"limited": {"turns": RIGHT, "faults": {"*": "429:0.2"}}}) as settings:
        done = fleet(
            "up", tasks, "-o", out, "--until-done", timeout=180, **settings,
            FLEET_LLM_RATE_LIMIT_BUDGET=2, FLEET_MAX_RETRIES=1, FLEET_MAX_WAITS=3,
        )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert decisions(out) == {"limited": "none"}
    found = attempts(out)["limited"]
    assert len(found) == 4  # the first try, and the waits it had a right to
    for trajectory, review in found:
        assert_infrastructure(trajectory, FailureKind.RATE_LIMITED)
        assert review is None


def assert_infrastructure(trajectory: Trajectory, kind: FailureKind) -> None:
    """Nobody's merit and nobody's fault: no label."""
    assert trajectory.failure is not None
    assert trajectory.failure.kind is kind
    assert trajectory.failure.failure_class is FailureClass.INFRASTRUCTURE
    assert trajectory.success is None


def test_a_failed_attempt_comes_back_as_a_revision_with_a_hint_and_may_pass(
    tmp_path: Path,
) -> None:
    # The stand-in answers by its own count of turns, so it says the same in every revision; the
    # second revision differs in what the fleet does: hint and temperature.
    tasks = write_tasks(tmp_path / "t.jsonl", [printing("again", max_iterations=3)])
    out = tmp_path / "out"
    with standin(tmp_path, {"again": {"turns": WRONG}}) as settings:
        done = fleet("up", tasks, "-o", out, "--until-done", **settings)
    assert done.returncode == 0, done.stderr
    found = attempts(out)["again"]
    assert [t.revision for t, _ in found] == [1, 2, 3]
    assert [r.decision for _, r in found if r] == ["iterate", "iterate", "rejected"]
    first, second, third = (t for t, _ in found)
    assert first.assignment.hints == ()
    assert "printed output was not what the task asks" in second.messages[0]["content"]
    assert second.agent.sampling.temperature == 0.7
    assert [h.attempt_id for h in third.assignment.history] == [
        first.attempt_id, second.attempt_id,
    ]  # fmt: skip
    for trajectory, _ in found[1:]:
        assert "expected" not in json.dumps(trajectory.assignment.hints)


def test_a_wrong_api_key_ends_with_one_sentence_and_keeps_every_task(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "t.jsonl", [printing(f"t{i}") for i in range(5)])
    out = tmp_path / "out"
    with standin(tmp_path, {"*": {"turns": RIGHT, "faults": {"*": "401"}}}) as settings:
        done = fleet(
            "up", tasks, "-o", out, "--until-done", **settings,
            FLEET_LLM_API_KEY="sk-very-secret-indeed",
        )  # fmt: skip
    assert done.returncode == 78, done.stdout
    assert "FLEET_LLM_API_KEY" in done.stderr
    assert "sk-very-secret" not in done.stderr + done.stdout
    logs = "".join(p.read_text() for p in (out / ".fleet" / "logs").iterdir())
    assert "sk-very-secret" not in logs

    with standin(tmp_path, {f"t{i}": {"turns": RIGHT} for i in range(5)}) as settings:
        done = fleet("up", tasks, "-o", out, "--until-done", **settings)
    assert done.returncode == 0, done.stderr
    assert set(decisions(out).values()) == {"accepted"}
    assert all(len(found) == 1 for found in attempts(out).values())


def test_a_key_that_stops_working_hands_the_work_back_uncounted(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "t.jsonl", [printing("t")])
    out = tmp_path / "out"
    with standin(tmp_path, {"t": {"turns": RIGHT, "faults": {"1": "402"}}}) as settings:
        done = fleet("up", tasks, "-o", out, "--until-done", **settings)
        assert done.returncode == 78
        assert "402" in done.stderr or "balance" in done.stderr.lower()
        done = fleet("up", tasks, "-o", out, "--until-done", **settings)
    assert done.returncode == 0, done.stderr
    [(trajectory, _)] = attempts(out)["t"]
    assert trajectory.attempt_id.split("-")[4] == "d1"  # the first delivery was not counted


def test_a_model_that_a_line_names_and_nobody_serves_costs_that_line_alone(
    tmp_path: Path,
) -> None:
    typo = printing("typo", sampling={"model": "standin-\x1b[2J1"})
    tasks = write_tasks(tmp_path / "t.jsonl", [typo, printing("fine")])
    out = tmp_path / "out"
    script = {"typo": {"turns": RIGHT, "faults": {"*": "404"}}, "fine": {"turns": RIGHT}}
    with standin(tmp_path, script) as settings:
        done = fleet("up", tasks, "-o", out, "--until-done", **settings)
        assert done.returncode == 1, done.stderr  # one dead letter
        assert decisions(out)["fine"] == "accepted"
        with process("fleet", "up", tasks, "-o", out, log=tmp_path / "log", **settings):
            wait_until(
                lambda: "invalid_task" in fleet("dead", "list", "-o", out).stdout,
                "it is listed", within=60,
            )  # fmt: skip
            listed = fleet("dead", "list", "-o", out).stdout
    assert "sampling.model" in listed
    assert "\x1b" not in listed


def test_ctrl_c_drains_and_the_next_run_finishes_the_rest(tmp_path: Path) -> None:
    slow = {"tool": "run_shell", "arguments": {"command": "sleep 1"}}
    script = {f"t{i}": {"turns": [slow, *RIGHT]} for i in range(12)}
    tasks = write_tasks(tmp_path / "t.jsonl", [printing(name) for name in script])
    out = tmp_path / "out"
    with standin(tmp_path, script) as settings:
        with process(
            "fleet", "up", tasks, "-o", out, "--concurrency", 2,
            log=tmp_path / "log", **settings, FLEET_DRAIN_GRACE=0,
        ) as running:  # fmt: skip
            wait_until(lambda: len(decisions(out)) >= 2, "the first tasks ended", within=60)
            running.send_signal(2)
            assert running.wait(30) == 0
        before = decisions(out)
        assert len(before) < 12
        done = fleet("up", tasks, "-o", out, "--until-done", **settings)
    assert done.returncode == 0, done.stderr
    assert set(decisions(out).values()) == {"accepted"}
    assert {t: len(found) for t, found in attempts(out).items()} == dict.fromkeys(script, 1)


def test_status_of_a_running_fleet_can_be_read_from_another_terminal(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "t.jsonl", [printing("t", agent="oracle")])
    out = tmp_path / "out"
    with process("fleet", "up", tasks, "-o", out, "--agent", "oracle", log=tmp_path / "log"):
        wait_until(lambda: decisions(out).get("t") == "accepted", "the task ends", within=60)
        told = counters(out)["code"]
        assert (told["tasks"], told["accepted"], told["unaccounted"]) == (1, 1, 0)
        assert told["workers"] == 1
        second = fleet("up", tasks, "-o", out)
        assert second.returncode == 78
        assert "another `fleet up`" in second.stderr
    gone = fleet("status", "-o", out)
    assert gone.returncode != 0
    assert "no `fleet up` is running" in gone.stderr
