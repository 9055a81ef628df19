"""The record of decisions: each once, whoever copies it, whatever crashes or is forgotten."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from common.audit import AuditLog, read
from common.queue.connection import Server
from common.queue.keys import Keys
from common.store import StoreError

STREAM = Keys("code").decisions


async def decide(server: Server, *names: str, scene: str = "code") -> list[str]:
    """What settle and decide leave in the stream; returns the entries."""
    stream = Keys(scene).decisions
    return [
        (await server.client.xadd(
            stream,
            {"id": name, "u": "r1-s0", "decision": "accepted", "p": json.dumps({"score": 90})},
        )).decode()
        for name in names
    ]  # fmt: skip


def tasks(root: Path) -> list[str]:
    return [str(line["task_id"]) for line in read(root) if "task_id" in line]


def month(root: Path) -> Path:
    return root / "audit" / f"decisions-{datetime.now(UTC):%Y-%m}.jsonl"


async def test_every_decision_is_copied_once_with_what_it_was_about(
    either: Server, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path)
    assert await log.copy(either, ["code", "web"]) == 0
    first, _ = await decide(either, "a", "b")
    await decide(either, "c", scene="web")
    assert await log.copy(either, ["code", "web"]) == 3
    assert await log.copy(either, ["code", "web"]) == 0
    await decide(either, "d")
    assert await AuditLog(tmp_path).copy(either, ["code", "web"]) == 1

    assert sorted(tasks(tmp_path)) == ["a", "b", "c", "d"]
    assert list(read(tmp_path, task_id="a")) == [
        {"scene": "code", "entry": first, "task_id": "a", "unit": "r1-s0", "decision": "accepted",
         "score": 90},
    ]  # fmt: skip
    assert tasks(tmp_path)[-1] == "d"
    assert (month(tmp_path).stat().st_mode & 0o137) == 0


async def test_many_who_copy_at_once_write_each_decision_once(
    server: Server, tmp_path: Path
) -> None:
    names = [f"t{i}" for i in range(1200)]
    await decide(server, *names)
    logs = [AuditLog(tmp_path) for _ in range(6)]
    done = await asyncio.gather(*(log.copy(server, ["code"]) for log in logs))
    assert sum(done) == 1200
    assert tasks(tmp_path) == names


async def test_a_crash_between_the_lines_and_the_index_doubles_nothing(
    server: Server, tmp_path: Path
) -> None:
    await decide(server, "a")
    log = AuditLog(tmp_path)
    await log.copy(server, ["code"])
    index = tmp_path / "audit" / ".copied.json"
    before = index.read_bytes()
    await decide(server, "b")
    await log.copy(server, ["code"])
    for damaged in (before, b"", b"[]", b'{"sizes": {}, "last": 3}'):
        index.write_bytes(damaged)
        assert await log.copy(server, ["code"]) == 0
    index.unlink()
    assert await log.copy(server, ["code"]) == 0
    assert tasks(tmp_path) == ["a", "b"]


async def test_a_line_that_a_crash_cut_off_is_written_again_and_costs_no_other(
    server: Server, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path)
    await decide(server, "a")
    await log.copy(server, ["code"])
    index = tmp_path / "audit" / ".copied.json"
    before = index.read_bytes()
    await decide(server, "b")
    await log.copy(server, ["code"])
    month(tmp_path).write_bytes(month(tmp_path).read_bytes()[:-9])
    index.write_bytes(before)  # it is written after the lines
    log.append({"decision": "asked", "task_id": "b", "by": "ana"})
    assert await log.copy(server, ["code"]) == 1

    assert [(line["task_id"], line["decision"]) for line in read(tmp_path)] == [
        ("a", "accepted"), ("b", "asked"), ("b", "accepted"),
    ]  # fmt: skip
    assert len(month(tmp_path).read_bytes().splitlines()) == 4


async def test_what_the_stream_forgot_before_it_was_copied_is_told(
    server: Server, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path)
    await decide(server, "a", "b", "c")
    await server.client.xtrim(STREAM, maxlen=2, approximate=False)
    assert await log.copy(server, ["code"]) == 2
    gaps = [line for line in read(tmp_path) if line.get("gap")]
    assert [(gap["scene"], gap["from"]) for gap in gaps] == [("code", "0-0")]

    (last,) = await decide(server, "d")
    await log.copy(server, ["code"])
    await decide(server, "e", "f")
    await server.client.xtrim(STREAM, maxlen=1, approximate=False)
    assert await log.copy(server, ["code"]) == 1
    gaps = [line for line in read(tmp_path) if line.get("gap")]
    assert gaps[1]["from"] == last
    assert tasks(tmp_path) == ["b", "c", "d", "f"]


async def test_a_server_that_was_emptied_begins_anew_even_with_a_clock_behind(
    server: Server, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path)
    await decide(server, "a")
    await log.copy(server, ["code"])
    await server.client.flushall()
    assert await log.copy(server, ["code"]) == 0
    fields: dict[Any, Any] = {"id": "b", "u": "r1-s0", "decision": "rejected", "p": "not JSON"}
    await server.client.xadd(STREAM, fields, id="5-1")
    assert await log.copy(server, ["code"]) == 1
    await server.client.xadd(STREAM, {**fields, "id": "c"}, id="5-2")
    assert await log.copy(server, ["code"]) == 1
    assert [line.get("task_id", "gap") for line in read(tmp_path)] == ["a", "gap", "b", "c"]
    assert next(iter(read(tmp_path, task_id="b")))["record"] == "not JSON"


async def test_a_server_restored_from_an_older_copy_doubles_nothing(
    server: Server, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path)
    *_, lost = await decide(server, "a", "b", "lost")
    await log.copy(server, ["code"])
    await server.client.xdel(STREAM, lost)
    assert await log.copy(server, ["code"]) == 0
    await decide(server, "c")
    assert await log.copy(server, ["code"]) == 1
    assert await log.copy(server, ["code"]) == 0
    assert tasks(tmp_path) == ["a", "b", "lost", "c"]


async def test_months_are_read_in_order_and_old_ones_may_be_put_away(
    server: Server, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path)
    await decide(server, "new")
    await log.copy(server, ["code"])
    old = tmp_path / "audit" / "decisions-2024-02.jsonl"
    old.write_text('{"task_id": "old", "decision": "asked"}\n' * 2)
    assert tasks(tmp_path) == ["old", "old", "new"]
    month(tmp_path).rename(tmp_path / "put-away")
    assert await log.copy(server, ["code"]) == 0


def test_words_of_many_processes_never_mix(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from common.audit import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\n"
        "for n in range(20): log.append({'by': sys.argv[2], 'n': n, 'why': 'x' * 9000})\n"
    )
    with ThreadPoolExecutor() as pool:
        list(pool.map(
            lambda name: subprocess.run(
                [sys.executable, "-c", program, tmp_path, name], check=True, timeout=60
            ),
            ("ana", "ben"),
        ))  # fmt: skip
    said = [(line["by"], line["n"]) for line in read(tmp_path)]
    assert sorted(said) == sorted((by, n) for by in ("ana", "ben") for n in range(20))


def test_a_word_that_cannot_be_written_down_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("in the way")
    with pytest.raises(StoreError, match="audit"):
        AuditLog(tmp_path).append({"by": "ana"})


def test_a_log_that_cannot_be_read_is_no_empty_log(tmp_path: Path) -> None:
    assert list(read(tmp_path)) == []
    folder = tmp_path / "audit"
    folder.write_text("in the way")
    with pytest.raises(StoreError, match=r"audit: Not a directory$"):
        list(read(tmp_path))
    folder.unlink()
    month(tmp_path).mkdir(parents=True)
    for look in (lambda: list(read(tmp_path)), lambda: AuditLog(tmp_path)._entries("code")):
        with pytest.raises(StoreError, match=rf"{month(tmp_path).name}: Is a directory$"):
            look()


async def test_what_was_found_to_be_written_down_is_not_read_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, compared = AuditLog(tmp_path), []
    *_, lost = await decide(server, *(f"t{i}" for i in range(1000)))
    await log.copy(server, ["code"])

    def read_all(log: AuditLog, scene: str, real: Any = AuditLog._entries) -> set[str]:
        compared.append(scene)
        return real(log, scene)

    monkeypatch.setattr(AuditLog, "_entries", read_all)
    await server.client.xdel(STREAM, lost)
    for _ in range(3):
        assert await AuditLog(tmp_path).copy(server, ["code", "web"]) == 0
    assert compared == ["code"]
    await decide(server, "after")
    assert await log.copy(server, ["code"]) == 1
    await server.client.flushall()
    for _ in range(3):
        assert await log.copy(server, ["code"]) == 0
    assert compared == ["code"] * 2
    assert [line.get("task_id", "gap") for line in read(tmp_path)][-2:] == ["gap", "after"]


async def test_an_index_that_is_gone_or_behind_is_made_again_at_once(
    server: Server, tmp_path: Path
) -> None:
    log = AuditLog(tmp_path)
    await decide(server, "a")
    await log.copy(server, ["code"])
    index = tmp_path / "audit" / ".copied.json"
    index.unlink()
    assert await log.copy(server, ["code"]) == 0
    made = index.stat()
    assert await log.copy(server, ["code"]) == 0
    assert index.stat().st_mtime_ns == made.st_mtime_ns
    log.append({"decision": "asked", "task_id": "a", "by": "ana"})
    assert await log.copy(server, ["code"]) == 0
    sizes = json.loads(index.read_bytes())["sizes"]
    assert sizes == {month(tmp_path).name: month(tmp_path).stat().st_size}


async def test_looking_for_news_costs_little(server: Server, tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    scenes = ["code", *(f"scene{i}" for i in range(11))]
    await decide(server, *(f"t{i}" for i in range(300)))
    await log.copy(server, scenes)
    before = await server.client.info("commandstats")
    began = time.monotonic()
    for _ in range(50):
        await log.copy(server, scenes)
    assert (time.monotonic() - began) / 50 < 0.1
    after = await server.client.info("commandstats")
    for name, calls in (("cmdstat_xrevrange", 50 * len(scenes)), ("cmdstat_xrange", 0)):
        assert after[name]["calls"] - before[name]["calls"] == calls
