"""`fleet budget`, as a person uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from common.queue.embedded import EmbeddedServer
from fleet.budget import budget_app


@pytest.fixture
def run(valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    client = redis.Redis.from_url(valkey.url)
    client.flushall()
    client.close()
    monkeypatch.setenv("FLEET_REDIS_URL", valkey.url)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def invoke(*argv: str) -> tuple[int, str]:
        done = CliRunner().invoke(budget_app, list(argv))
        return done.exit_code, done.output

    return invoke


def shown(run: Any) -> dict[str, Any]:
    code, output = run("show", "--json")
    assert code == 0
    return dict(json.loads(output))


def test_a_server_whose_memory_is_full_says_what_is_spent_and_takes_a_lower_limit(
    run: Any, valkey: EmbeddedServer
) -> None:
    client = redis.Redis.from_url(valkey.url)
    client.function_flush()  # as on a server on which nobody has asked for a budget yet
    try:
        client.config_set("maxmemory", 1)
        assert run("show")[0] == 0
        client.config_set("maxmemory", 0)
        assert run("set", "--usd", "12.5")[0] == 0
        client.config_set("maxmemory", 1)
        assert run("set", "--usd", "2", "--why", "enough")[0] == 0
        assert shown(run)["run"]["usd"]["limit"] == 2_000_000_000
        rows: Any = client.xrange("fleet:audit")
        assert [row[b"action"] for _, row in rows] == [b"budget.set"] * 2
    finally:
        client.config_set("maxmemory", 0)
        client.close()


def test_a_budget_is_set_shown_and_cleared(run: Any) -> None:
    assert run("set", "--usd", "12.5")[1].strip() == (
        "run: at most 12.50 USD, 0.00 USD of it spent"
    )
    code, said = run("set", "--scene", "code_exec", "--usd", "2", "--tokens", "50000")
    assert code == 0
    assert "scene:code: at most 50,000 tokens" in said
    found = shown(run)
    assert found["run"]["usd"]["limit"] == 12_500_000_000
    assert found["scene:code"]["tokens"]["limit"] == 50_000
    table = run("show")[1]
    assert "12.50 USD" in table
    assert "none" in table
    assert run("clear", "--scene", "code")[0] == 0
    assert shown(run)["scene:code"]["tokens"]["limit"] is None
    assert shown(run)["run"]["usd"]["limit"] == 12_500_000_000


def test_what_cannot_be_meant_is_refused(run: Any) -> None:
    assert run("set")[0] == 2
    assert run("set", "--usd", "-1")[0] == 2
    assert run("set", "--usd", "nan")[0] == 2
    code, _ = run("set", "--scene", "coed", "--usd", "1")
    assert code == 2
    assert shown(run) == {}


@pytest.mark.parametrize(
    "argv",
    [
        ("--tokens", "1" + "0" * 400),
        ("--tokens", "-1"),
        ("--usd", "1e300"),
        ("--usd", "nan"),
        ("--usd", "1e-12"),
        ("--usd", "5", "--scene", "nowhere"),
        (),
    ],
)
def test_amounts_that_make_no_sense_are_refused_with_a_sentence(
    run: Any, argv: tuple[str, ...]
) -> None:
    code, output = run("set", *argv)
    assert code == 2
    assert "Traceback" not in output
    assert shown(run) == {}


def test_a_database_that_is_not_there_is_a_sentence(
    run: Any, monkeypatch: pytest.MonkeyPatch, valkey: EmbeddedServer
) -> None:
    monkeypatch.setenv("FLEET_REDIS_URL", valkey.url.removesuffix("/0") + "/99")
    code, output = run("show")
    assert code == 78
    assert "out of range" in output
