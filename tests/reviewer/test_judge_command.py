"""`fleet judge`, as a person uses it, against a judge over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from common.only_one import only_one
from common.queue.connection import Server
from common.queue.control import Who
from common.queue.embedded import EmbeddedServer
from common.quota.budgets import Budget, read_budgets, set_budget
from common.store import Store
from common.task import Assignment
from common.trajectory import Agent, Verdict
from fleet.judge import judge_app
from tests.exporters.attempts import review_of
from tests.helpers import task
from tests.reviewer.judges import JudgeServer, acted, served

Run = Callable[..., tuple[int, str]]
KEYS = ("GEMINI_API_KEY", "DEEPSEEK_API_KEY", "OPENAI_API_KEY", "DASHSCOPE_API_KEY")


def fill(root: Path, count: int, **fields: Any) -> None:
    """Keep attempts of which one in two passed; one that failed looks as if it had."""
    store = Store(root)
    for number in range(count):
        passed = number % 2 == 0
        trajectory = acted(
            "1",
            success=passed or number == 1,
            task_id=f"t-{number}",
            attempt_id="r1-s0-1700000000000-0-d1-aaaaaaaa",
            assignment=Assignment(task=task(f"t-{number}")),
            revision=1,
            verdict=Verdict(passed=passed, reward=float(passed)),
            **fields,
        )
        store.write_attempt(trajectory)
        store.write_review(review_of(trajectory))


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    server = JudgeServer()
    server.fingerprint = "fp_1"  # as a model's: a stand-in is trusted by nobody
    with served(server) as url:
        server.url = url  # type: ignore[attr-defined]
        yield server


@pytest.fixture
def run(judge: JudgeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"FLEET_{name}", raising=False)
    monkeypatch.delenv("FLEET_REDIS_URL", raising=False)
    monkeypatch.setenv("FLEET_LLM_BASE_URL", judge.url)  # type: ignore[attr-defined]
    monkeypatch.setenv("FLEET_LLM_MODEL", "acting")
    monkeypatch.setenv("FLEET_JUDGE_VOTES", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def invoke(*argv: str) -> tuple[int, str]:
        done = CliRunner().invoke(judge_app, list(argv))
        return done.exit_code, " ".join(done.output.split())

    return invoke


def test_a_judge_is_measured_once_and_shown_as_trusted(
    run: Run, judge: JudgeServer, tmp_path: Path
) -> None:
    fill(tmp_path / "output", 14)
    code, said = run("calibrate", "--judge", "custom:small,custom:large")
    assert code == 0, said
    # One of seven failures is taken for done: 13 of 14 agree, by chance 1/2.
    for name in ("custom:small", "custom:large"):
        assert f"│ code │ {name} │ 14 │ 0.93 │ 0.86 │ 0.93 │ 0 │ 0 │ yes │" in said
        path = tmp_path / "output" / "calibrations" / f"code--{name}.json"
        assert json.loads(path.read_bytes())["confusion"]["done_failed"] == 1
    assert {body["model"] for body in judge.bodies} == {"small", "large"}
    assert len(judge.bodies) == 28
    assert run("calibrate", "--judge", "custom:small", "--scene", "code")[0] == 0
    assert len(judge.bodies) == 28  # nothing is paid for twice
    code, said = run("show")
    assert code == 0
    assert "custom:large" in said


def test_a_judge_under_the_floor_is_told_as_such(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill(tmp_path / "output", 14)
    monkeypatch.setenv("FLEET_JUDGE_FLOOR", "0.9")
    code, said = run("calibrate", "--limit", "12")
    assert code == 0
    assert "custom:acting" in said
    assert "no: kappa 0.83 is under the floor of 0.9" in said


def test_attempts_that_are_refused_are_counted_and_end_nothing(
    run: Run, judge: JudgeServer, tmp_path: Path
) -> None:
    fill(tmp_path / "output", 14)
    judge.refuse_from = 12
    code, said = run("calibrate")
    assert code == 0, said
    assert "│ code │ custom:acting │ 11 │" in said
    assert "│ 0 │ 3 │" in said
    judge.refuse_from = None
    asked = len(judge.bodies)
    assert run("calibrate")[0] == 0
    assert len(judge.bodies) == asked


def test_a_stand_in_is_measured_and_not_trusted(
    run: Run, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill(tmp_path / "output", 14)
    judge.fingerprint = "standin"
    assert "no: a stand-in answered" in run("calibrate")[1]


@pytest.mark.parametrize(
    ("others", "told"), [(0, "all on its own work"), (4, "10 of 14 on its own work")]
)
def test_who_was_measured_on_its_own_work_is_told_as_such(
    run: Run, tmp_path: Path, others: int, told: str
) -> None:
    fill(tmp_path / "output", 14, agent=Agent(kind="llm", model="small", provider="custom"))
    fill(tmp_path / "output", others)
    code, said = run("calibrate", "--judge", "custom:small,custom:large")
    assert code == 0, said
    for shown in (said, run("show")[1]):
        assert f"│ 0 │ 0 │ yes, {told} │" in shown
        assert "│ 0 │ 0 │ yes │" in shown


def test_one_at_a_time_measures_in_a_folder(run: Run, judge: JudgeServer, tmp_path: Path) -> None:
    fill(tmp_path / "output", 4)
    folder = tmp_path / "output" / "calibrations"
    folder.mkdir()
    with only_one(folder / ".lock", patience=0):
        code, said = run("calibrate")
    assert (code, judge.bodies) == (78, [])
    assert "another process is still at work" in said
    assert run("calibrate")[0] == 0


def test_what_was_measured_with_other_votes_is_told_as_such(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fill(tmp_path / "output", 12)
    assert run("calibrate")[0] == 0
    monkeypatch.setenv("FLEET_JUDGE_VOTES", "3")
    assert "no: measured with FLEET_JUDGE_VOTES=1, and now it is 3" in run("show")[1]


def test_attempts_that_cannot_be_used_are_counted_with_the_reason(run: Run, tmp_path: Path) -> None:
    store = Store(tmp_path / "output")
    for number, kind in enumerate(("oracle", "nop", "llm")):
        trajectory = acted(
            "1",
            task_id=f"t-{number}",
            attempt_id="r1-s0-1700000000000-0-d1-aaaaaaaa",
            assignment=Assignment(task=task(f"t-{number}")),
            revision=1,
            agent=Agent.model_validate({"kind": kind}),
            verdict=Verdict(passed=None if kind == "llm" else True),
        )
        store.write_attempt(trajectory)
        store.write_review(review_of(trajectory))
    code, said = run("calibrate")
    assert code == 1
    assert "left out: 2 by scripted agents, 1 without a verdict" in said


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (("--scene", "web"), 1, "no attempt of a model with a verdict"),
        (("--judge", "gemeni"), 78, "known: gemini, deepseek"),
        (("--judge", "deepseek"), 78, "FLEET_DEEPSEEK_API_KEY"),
        (("--scene", "cod"), 2, "did you mean"),
    ],
)
def test_what_cannot_be_done_is_said(
    run: Run, tmp_path: Path, argv: tuple[str, ...], code: int, says: str
) -> None:
    fill(tmp_path / "output", 2)
    found, said = run("calibrate", *argv)
    assert found == code
    assert says in said


def test_an_empty_store_is_said(run: Run) -> None:
    code, said = run("calibrate")
    assert code == 1
    assert "no attempt has been written" in said


@pytest.fixture
def fleet(valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, run: Run) -> str:
    client = redis.Redis.from_url(valkey.url)
    client.flushall()
    client.close()
    monkeypatch.setenv("FLEET_REDIS_URL", valkey.url)
    return valkey.url


def on_server(url: str, ask: Callable[[Server], Any]) -> Any:
    async def asked() -> Any:
        server = Server(url, patience=10)
        try:
            return await ask(server)
        finally:
            await server.close()

    return asyncio.run(asked())


def test_the_fleets_budget_pays_for_calibration_and_ends_it(
    run: Run, fleet: str, judge: JudgeServer, tmp_path: Path
) -> None:
    fill(tmp_path / "output", 12)
    me = Who("me@here")
    on_server(fleet, lambda server: set_budget(server, me, scene="code", usd=None, tokens=100_000))
    code, said = run("calibrate")
    assert code == 0, said
    budgets: dict[str, Budget] = on_server(fleet, read_budgets)
    assert budgets["scene:code"].tokens.spent == 12 * 110
    on_server(fleet, lambda server: set_budget(server, me, scene="code", usd=None, tokens=1_400))
    asked = len(judge.bodies)
    code, said = run("calibrate", "--judge", "custom:other")
    assert code == 75
    assert "the budget of scene code has too little left" in said
    assert len(judge.bodies) == asked


@pytest.mark.parametrize("left", [{"url": "redis://127.0.0.1:1/0", "pid": 1}, {"pid": 1}])
def test_the_address_of_a_fleet_that_is_gone_is_no_obstacle(
    run: Run, tmp_path: Path, left: dict[str, Any]
) -> None:
    fill(tmp_path / "output", 12)
    file = tmp_path / "output" / ".fleet" / "server.json"
    file.parent.mkdir()
    file.write_text(json.dumps(left))
    code, said = run("calibrate")
    assert code == 0, said
