"""Work that cannot be run: found, explained, and run again on a person's word."""

from __future__ import annotations

from pathlib import Path

from common.queue.embedded import EmbeddedServer
from tests.e2e.fleet import counters, decisions, fleet, printing, process, wait_until, write_tasks


def test_submit_dead_list_and_dead_retry(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "valkey")
    server.start()
    out = tmp_path / "out"
    env = {"FLEET_REDIS_URL": server.url, "FLEET_OUTPUT": out}
    tasks = write_tasks(
        tmp_path / "t.jsonl",
        [
            printing("impossible", agent="oracle", constraints={"memory": "1 GB"}),
            printing("fine", agent="oracle"),
            printing("fine", agent="oracle"),
            printing("wrong", priority=11),
        ],
    )
    try:
        done = fleet("submit", tasks, **env)
        assert done.returncode == 1
        assert "2 queued, 1 duplicate, 1 rejected" in done.stdout
        assert "t.jsonl:4: priority" in done.stderr
        with (
            process("workers", "code", "--no-model", log=tmp_path / "w", **env),
            process("reviewer", log=tmp_path / "r", **env),
        ):

            def dead() -> bool:
                return counters(out, **env)["code"].get("dead") == 1

            wait_until(dead, "the impossible task is buried", within=60)
            wait_until(lambda: decisions(out).get("fine") == "accepted", "the other", within=60)
            listed = fleet("dead", "list", **env).stdout
            assert "invalid_task" in listed
            assert "constraints.memory: unknown field" in listed.replace("\n", " ")
            assert "no dead letters" in fleet("dead", "list", "--reason", "poison", **env).stdout

            assert fleet("dead", "retry", "nobody", **env).returncode == 1
            assert "1 queued again" in fleet("dead", "retry", "impossible", **env).stdout
            wait_until(dead, "it is buried again", within=60)
            told = counters(out, **env)["code"]
            assert (told["tasks"], told["tasks_dead"], told["unaccounted"]) == (2, 1, 0)
    finally:
        server.stop()
