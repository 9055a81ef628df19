"""`fleet export` writes what is well, and says what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from common.store import Store
from fleet.exporting import export
from tests.common.stored import FIRST, keep


def test_damaged_files_are_counted_and_named_and_the_rest_is_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "output")
    for task_id in ("a", "b", "c", "d"):
        keep(store, task_id)
    store.attempt_path("a", FIRST).write_text("{")
    review = store.review_path("b", FIRST)
    review.write_text(json.dumps({**json.loads(review.read_bytes()), "score": "SECRET"}))
    store.attempt_path("c", FIRST).write_bytes(b"[]")

    app = typer.Typer()
    app.command()(export)
    done = CliRunner().invoke(app, ["raw"])
    assert done.exit_code == 0, done.output
    assert "1 rows in" in done.stdout and "3 left out: damaged" in done.stdout
    told = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(told) == 3, done.stderr
    for line, what, why in zip(
        told, ("trajectory", "review", "trajectory"), ("EOF", "score: ", "object"), strict=True
    ):
        assert line.startswith("left out: output/trajectories/")
        assert f" is not a {what}: " in line and why in line
    assert not [word for word in ("SECRET", "pydantic", "https:", "{") if word in done.stderr]
    assert len((store.root / "raw.jsonl").read_text().splitlines()) == 1
