"""`fleet audit` has what people did to the fleet, and what they said of approvals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from common.audit import AuditLog
from common.queue.embedded import EmbeddedServer
from fleet.audit import audit_app

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(valkey: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A scene that was paused, and released after people had decided."""
    client = redis.Redis.from_url(valkey.url)
    client.flushall()
    for at, action in ((1_000, "pause"), (9_000, "resume")):
        fields: Any = {"by": "ana@lab", "action": action, "target": "", "detail": ""}
        client.xadd("fleet:{tasks:code}:audit", fields, id=f"{at}-0")
    client.close()
    monkeypatch.setenv("FLEET_REDIS_URL", valkey.url)
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.chdir(tmp_path)

    def invoke(*argv: str) -> tuple[int, str]:
        done = CliRunner().invoke(audit_app, list(argv))
        return done.exit_code, done.output

    return invoke


def tell(folder: Path, **line: Any) -> None:
    about = {"scene": "code", "task_id": "t", "unit": "r1-s0", "field": "task.timeout"}
    AuditLog(folder / "output").append(about | line)


def test_words_on_approvals_stand_among_what_was_done_by_time(run: Run, tmp_path: Path) -> None:
    word = {
        "approval_id": "ap-1",
        "by": "bo@lab",
        "said": "reject",
        "at": 4.5,
        "why": "too \x1bslow",
    }
    tell(tmp_path, decision="waiting", entry="3000-0", by="reviewer-1", at=3.0)  # a review
    tell(tmp_path, decision="asked", **word)
    tell(tmp_path, decision="reject", entry="5000-0", state="rejected", then="rejected", **word)
    tell(tmp_path, decision="asked", **word | {"at": 6.0})  # it came too late
    cancel = {"approval_id": "ap-2", "by": "cy@lab", "said": "cancel", "state": "cancelled"}
    tell(tmp_path, decision="cancel", entry="7000-1", scene="web", **cancel)

    told = json.loads(run("--json")[1])
    assert [(row["scene"], row["by"], row["action"]) for row in told] == [
        ("code", "ana@lab", "pause"), ("code", "bo@lab", "reject"),
        ("code", "bo@lab", "asked to reject"), ("web", "cy@lab", "cancel"),
        ("code", "ana@lab", "resume"),
    ]  # fmt: skip
    assert told[1]["at"] == "1970-01-01T00:00:05+00:00"
    assert (told[1]["target"], told[1]["detail"]) == (
        "t", "task.timeout of r1-s0 (ap-1): rejected: too \x1bslow",
    )  # fmt: skip
    assert [row["by"] for row in json.loads(run("--json", "--limit", "2")[1])] == [
        "cy@lab", "ana@lab",
    ]  # fmt: skip
    assert [row["by"] for row in json.loads(run("--json", "--scene", "web")[1])] == ["cy@lab"]
    code, shown = run()
    assert code == 0
    assert "task.timeout of r1-s0 (ap-1): rejected: too" in shown and "\x1b" not in shown


def test_a_fleet_that_asked_nobody_has_an_audit_too(run: Run) -> None:
    assert [row["action"] for row in json.loads(run("--json")[1])] == ["pause", "resume"]
