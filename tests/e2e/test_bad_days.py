"""What users bring and machines do: bad lines, full disks, missing servers. Each costs one line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.process import free_port
from common.queue.embedded import EmbeddedServer
from tests.e2e.fleet import (
    attempts,
    decisions,
    fleet,
    printing,
    process,
    wait_until,
    write_tasks,
)


def test_every_kind_of_bad_line_costs_only_itself(tmp_path: Path) -> None:
    good = [json.dumps(printing(f"good-{i}", agent="oracle")).encode() for i in range(4)]
    bad = {
        "not valid JSON": b'{"task_id": "x", ',
        "unknown scene": json.dumps(printing("a", task_type="kode")).encode(),
        "did you mean 'max_steps'": json.dumps(printing("b", max_step=3)).encode(),
        "valid integer": json.dumps(printing("c", max_steps="many")).encode(),
        "must be 1-128 letters": json.dumps(printing("../../etc/x")).encode(),
        "bytes long": json.dumps(printing("d", description="x" * 10_000_000)).encode(),
        "NUL byte": json.dumps(printing("e")).encode().replace(b"Print", b"Pr\0nt"),
        "UTF-16": json.dumps(printing("f")).encode("utf-16-le"),
        "greater than 0": json.dumps(printing("g", timeout=0)).encode(),
        "less than or equal to 10": json.dumps(printing("h", priority=11)).encode(),
        "one JSON object": b"[1, 2]",
    }
    duplicate = good[0]
    lines = [
        good[0],
        *list(bad.values())[:6],
        good[1],
        duplicate,
        *list(bad.values())[6:],
        *good[2:],
    ]
    tasks = tmp_path / "t.jsonl"
    tasks.write_bytes(b"\n".join(lines) + b"\n")
    out = tmp_path / "out"
    done = fleet("up", tasks, "-o", out, "--agent", "oracle", "--until-done")
    assert done.returncode == 0, done.stderr
    assert decisions(out) == {f"good-{i}": "accepted" for i in range(4)}
    rows = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    for words, line in bad.items():
        number = lines.index(line) + 1
        [row] = [r for r in rows if r["line"] == number]
        assert words in row["reason"], row
        assert row["file"] == str(tasks)
        assert row["field"]
    [row] = [r for r in rows if "duplicate" in r["reason"]]
    assert row["line"] == lines.index(duplicate, 1) + 1
    assert len(rows) == len(bad) + 1

    done = fleet("validate", tasks)
    assert done.returncode == 1
    for words in bad:
        assert words in done.stdout.replace("\n", " ")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system that is soon full."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a tmpfs")
    folder.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "fleet-test", str(folder)], check=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_work_and_loses_nothing(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "valkey")
    server.start()
    tasks = write_tasks(
        tmp_path / "t.jsonl", [printing(f"t{i}", agent="oracle") for i in range(40)]
    )
    try:
        with small_disk(tmp_path / "disk", "2m") as disk:
            out = disk / "out"
            ballast = disk / "ballast"
            ballast.write_bytes(b"\0" * 1_900_000)
            log = tmp_path / "log"
            with process(
                "fleet", "up", tasks, "-o", out, "--agent", "oracle", "--until-done",
                log=log, FLEET_REDIS_URL=server.url,
            ) as running:  # fmt: skip
                wait_until(
                    lambda: shutil.disk_usage(disk).free < 8192, "the disk is full", within=60
                )
                time.sleep(4)  # long enough to do damage, if it could
                assert running.poll() is None, log.read_text()
                assert len(decisions(out)) < 40
                ballast.unlink()
                assert running.wait(60) == 0, log.read_text()
            assert decisions(out) == {f"t{i}": "accepted" for i in range(40)}
            for found in attempts(out).values():
                assert sum(review is not None for _, review in found) == 1
    finally:
        server.stop()


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    tasks = write_tasks(tmp_path / "t.jsonl", [printing("t")])
    done = fleet("up", tasks, "-o", blocked / "out", "--agent", "oracle")
    assert done.returncode == 78
    assert str(blocked) in done.stderr.replace("\n", "")
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path, valkey: EmbeddedServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        log = tmp_path / "log"
        with process(
            "reviewer", log=log,
            FLEET_REDIS_URL=valkey.url, FLEET_METRICS_PORT=port, FLEET_OUTPUT=tmp_path / "out",
        ) as running:  # fmt: skip
            assert running.wait(30) == 78
        assert f"127.0.0.1:{port}" in log.read_text()
        assert "FLEET_METRICS_PORT" in log.read_text()


def test_services_wait_for_a_server_that_is_not_there_yet_and_survive_its_restart(
    tmp_path: Path,
) -> None:
    port = free_port()
    server = EmbeddedServer(tmp_path / "valkey", port=port)
    tasks = write_tasks(
        tmp_path / "t.jsonl", [printing(f"t{i}", agent="oracle") for i in range(40)]
    )
    out = tmp_path / "out"
    env = {"FLEET_REDIS_URL": server.url, "FLEET_OUTPUT": out}
    with (
        process("dispatcher", tasks, log=tmp_path / "d", **env) as dispatcher,
        process("workers", "code", "--concurrency", 2, "--no-model", log=tmp_path / "w", **env)
        as worker,
        process("reviewer", log=tmp_path / "r", **env) as reviewer,
    ):  # fmt: skip
        for log in ("d", "w", "r"):
            wait_until(
                lambda log=log: "queue.server_away" in (tmp_path / log).read_text(),
                "it says that the server is away", within=30,
            )  # fmt: skip
        server.start()
        try:
            wait_until(lambda: len(decisions(out)) >= 5, "work goes on", within=60)
            server.kill()
            server.start()
            wait_until(
                lambda: list(decisions(out).values()).count("accepted") == 40, "all done", within=90
            )
            for running in (dispatcher, worker, reviewer):
                assert running.poll() is None
        finally:
            server.stop()
    for found in attempts(out).values():
        assert sum(review is not None for _, review in found) == 1


def test_the_embedded_server_is_started_again_when_it_dies(tmp_path: Path) -> None:
    slow = {"actions": [{"tool": "run_shell", "arguments": {"command": "sleep 0.5; echo 42"}}]}
    tasks = write_tasks(
        tmp_path / "t.jsonl",
        [printing(f"t{i}", agent="oracle", reference=slow) for i in range(24)],
    )
    out = tmp_path / "out"
    with process(
        "fleet", "up", tasks, "-o", out, "--agent", "oracle", "--until-done",
        "--concurrency", 2, log=tmp_path / "log",
    ) as running:  # fmt: skip
        wait_until(lambda: len(decisions(out)) >= 2, "work goes on", within=60)
        [valkey] = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit()
            and _parent(entry) == running.pid
            and "valkey" in (entry / "exe").readlink().name
        ]
        os.kill(valkey, 9)
        assert running.wait(90) == 0, (tmp_path / "log").read_text()
    assert decisions(out) == {f"t{i}": "accepted" for i in range(24)}
    for found in attempts(out).values():
        assert sum(review is not None for _, review in found) == 1


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_until_done_does_not_claim_what_nobody_did(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "t.jsonl", [printing("elsewhere", task_type="web")])
    done = fleet("up", tasks, "-o", tmp_path / "out", "--agent", "oracle", "--until-done")
    assert done.returncode == 1
    assert "no worker serves this scene" in done.stdout


def test_processes_told_to_end_while_the_server_is_away_end_within_seconds(
    tmp_path: Path,
) -> None:
    server = EmbeddedServer(tmp_path / "valkey")
    server.start()
    slow = {"actions": [{"tool": "run_shell", "arguments": {"command": "sleep 3"}}]}
    tasks = write_tasks(
        tmp_path / "t.jsonl",
        [printing(f"t{i}", agent="oracle", reference=slow) for i in range(8)],
    )
    env = {"FLEET_REDIS_URL": server.url, "FLEET_OUTPUT": tmp_path / "out"}
    log = tmp_path / "w"
    with (
        process("dispatcher", tasks, log=tmp_path / "d", **env) as dispatcher,
        process("workers", "code", "--no-model", log=log, **env) as worker,
        process("reviewer", log=tmp_path / "r", **env) as reviewer,
    ):
        wait_until(lambda: "attempt.started" in log.read_text(), "work began", within=60)
        server.kill()
        for running in (dispatcher, worker, reviewer):
            running.terminate()
        # Grace for the episodes under way, patience with the server, and some for a slow machine.
        assert worker.wait(40) in (0, 75)
        assert reviewer.wait(40) in (0, 75)
        assert dispatcher.wait(40) in (0, 75)


def test_commands_say_at_once_that_no_server_answers(tmp_path: Path) -> None:
    url = f"redis://:secret-word@127.0.0.1:{free_port()}/0"
    done = fleet("status", FLEET_REDIS_URL=url, FLEET_OUTPUT=tmp_path)
    assert done.returncode == 78
    assert "no answer from the server at 127.0.0.1" in done.stderr
    assert "secret-word" not in done.stderr


def test_a_server_that_could_lose_work_is_refused(tmp_path: Path, valkey: EmbeddedServer) -> None:
    import redis

    client = redis.Redis.from_url(valkey.url)
    for setting, bad, good in (
        ("appendonly", "no", "yes"), ("maxmemory-policy", "allkeys-lru", "noeviction"),
    ):  # fmt: skip
        client.config_set(setting, bad)
        try:
            log = tmp_path / setting
            with process("reviewer", log=log, FLEET_REDIS_URL=valkey.url) as running:
                assert running.wait(30) == 78
            assert setting in log.read_text()
        finally:
            client.config_set(setting, good)


def test_doctor_finds_nothing_wrong_here_and_names_what_is(tmp_path: Path) -> None:
    done = fleet("doctor", "-o", tmp_path / "out", FLEET_CACHE=tmp_path)
    assert done.returncode == 0, done.stdout
    for what in ("python", "sandbox", "queue server", "model", "output", "disk", "port"):
        assert what in done.stdout
    done = fleet(
        "doctor", "-o", tmp_path / "out",
        FLEET_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0", FLEET_SANDBOX="podman",
    )  # fmt: skip
    assert done.returncode == 1
    assert "no answer from the server" in done.stdout
    assert "podman" in done.stdout


def test_schemas_are_valid_json_schema() -> None:
    import jsonschema

    schemas = json.loads(fleet("schema").stdout)
    assert set(schemas) == {"task", "trajectory", "step", "verdict", "review"}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(printing("t"), schemas["task"])
