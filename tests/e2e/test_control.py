"""Steering a running fleet from another terminal: it obeys, loses nothing, and it is on record."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from common.presence import PROCESSES
from common.queue.embedded import EmbeddedServer
from common.queue.keys import Keys
from fleet import context
from fleet.cli import app
from tests.e2e.fleet import (
    attempts,
    decisions,
    printing,
    process,
    wait_until,
    write_tasks,
)

QUICK = {"FLEET_STEP_TIMEOUT": "90", "FLEET_LEASE": "2"}
LONG = "300.125"
"""Seconds no test waits; also how the sleepers are found among all processes."""


class Terminal:
    """Another terminal: gives `fleet` commands, in this process, which spares their start."""

    def __init__(self, output: Path, url: str | None = None) -> None:
        kept = {k: None for k in os.environ if k.startswith("FLEET_")}
        self._env: dict[str, str | None] = {**kept, **QUICK, "FLEET_OUTPUT": str(output)}
        self._env["FLEET_REDIS_URL"] = url
        if url is None:
            del self._env["FLEET_REDIS_URL"]

    def __call__(self, *args: Any, code: int = 0) -> str:
        """Run a command that ends with ``code``; returns all it said."""
        done = CliRunner().invoke(app, [str(arg) for arg in args], env=self._env)
        assert done.exit_code == code, (args, done.output, done.exception)
        return done.output

    def json(self, *args: Any) -> Any:
        return json.loads(self(*args, "--json"))

    def count(self, name: str) -> int:
        """A number of the code scene, 0 before there is any."""
        return int(self.json("status").get("code", {}).get(name, 0))


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables without line breaks."""
    for console in (context.out, context.err):
        monkeypatch.setattr(console, "_width", 250)


@contextmanager
def served(folder: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def sleeping(task_id: str, seconds: float | str, **more: Any) -> dict[str, Any]:
    """A task whose reference sleeps in the jail before it solves it."""
    call = {"tool": "run_shell", "arguments": {"command": f"sleep {seconds}; echo 42"}}
    return printing(task_id, reference={"actions": [call]}, **more)


def sleepers(seconds: float | str) -> int:
    """How many processes of this machine, in jails or not, sleep that long."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found += (folder / "cmdline").read_bytes() == f"sleep\0{seconds}\0".encode()
        except OSError:
            continue
    return found


def test_a_running_fleet_is_paused_resumed_cancelled_and_drained_and_goes_on_later(
    tmp_path: Path,
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    tasks = write_tasks(
        tmp_path / "t.jsonl",
        [
            sleeping("long", LONG, priority=10),
            sleeping("other", LONG, priority=10),
            printing("queued", priority=1),
            *(printing(f"quick-{n}") for n in range(4)),
            printing("impossible", constraints={"memory": "1 GB"}),
        ],
    )
    up = ("up", tasks, "-o", out, "--agent", "oracle", "--concurrency", 2)
    say = Terminal(out)
    with process("fleet", *up, log=log, FLEET_DRAIN_GRACE=0.2, **QUICK) as running:
        wait_until(lambda: (out / ".fleet/server.json").exists(), "it is up", within=30)
        wait_until(lambda: sleepers(LONG) == 2, "both slots are taken", within=30)
        wait_until(lambda: say.count("tasks") == 8, "all is queued", within=30)

        # What runs, runs on; what waits, waits, even where there is a free slot.
        assert "code: paused; 2 attempts run on" in say("pause", "code_exec", "--why", "lunch")
        assert "was paused already, by" in say("pause", "code")
        assert "stopping" in say("cancel", "long", "--wait", "--why", "too long")
        told = say("cancel", "queued", "nobody", code=1)
        assert "queued (code): cancelled" in told
        assert "nobody: no such task" in told
        assert "had ended before: cancelled" in say("cancel", "queued")
        assert sleepers(LONG) == 1
        now = say.json("status")["code"]
        assert (now["running"], now["waiting"], now["tasks_cancelled"]) == (1, 5, 2)
        assert now["paused"].endswith(": lunch")
        assert "code: paused by" in say("status")
        assert "code: goes on; 5 wait" in say("resume", "code")
        assert "was not paused" in say("resume", "code")
        assert "has ended" in say("cancel", "other", "--wait")
        assert sleepers(LONG) == 0
        wait_until(lambda: say.count("accepted") == 4, "the quick ones go through", within=30)

        wait_until(lambda: say.count("dead") == 1, "the impossible one is buried", within=30)
        shown = say("dead", "show", "impossible")
        assert '"memory": "1 GB"' in shown
        assert "once more: fleet dead retry" in shown
        assert "1 queued again" in say("dead", "retry", "impossible")
        wait_until(lambda: say.count("dead") == 1, "it is buried again", within=30)
        assert "1 purged" in say("dead", "purge", "--all", "--yes", "--why", "hopeless")

        with tasks.open("a") as more:
            more.write(json.dumps(sleeping("late", 6)) + "\n")
        wait_until(lambda: sleepers(6) == 1, "a last one runs", within=30)
        assert "paused; 1 attempts run on" in say("pause", "code", "--why", "not yet")
        told = say("drain", "--why", "upgrade")
        assert "asked to drain: 1 dispatcher, 1 reviewer, 1 up, 1 worker" in told
        assert running.wait(30) == 0, log.read_text()
    assert "exit code" not in log.read_text()
    assert "no queue server" in say("status", code=1)
    assert sleepers(6) == 0
    assert "late" not in decisions(out)

    # The order to drain meant those that ran then; the pause holds, and is said to whoever waits.
    log = tmp_path / "later"
    with process("fleet", *up, "--until-done", log=log, **QUICK) as running:
        wait_until(lambda: "1 tasks wait: paused by" in log.read_text(), "it says so", within=40)
        assert "code: goes on" in say("resume", "--all")
        assert running.wait(60) == 0, log.read_text()
    accepted = {task for task, decision in decisions(out).items() if decision == "accepted"}
    assert accepted == {"late", *(f"quick-{n}" for n in range(4))}
    for task in accepted:
        assert sum(review is not None for _, review in attempts(out)[task]) == 1
    with served(out / ".fleet/valkey") as server:
        ended = Terminal(out, server.url)
        now = ended.json("status")["code"]
        assert now["released"] == 1
        assert (now["tasks"], now["accepted"], now["tasks_cancelled"]) == (9, 5, 3)
        assert now["tasks_dead"] == 1
        assert now["open_tasks"] == now["unaccounted"] == 0
        rows = [(row["action"], row["target"], row["detail"]) for row in ended.json("audit")]
    assert rows == [
        ("pause", "", "lunch"), ("cancel", "long", "too long"), ("cancel", "queued", ""),
        ("resume", "", ""), ("cancel", "other", ""), ("dead.retry", "impossible r1-s0", ""),
        ("dead.purge", "impossible r1-s0", "hopeless"), ("pause", "", "not yet"),
        ("drain", "", "upgrade"), ("resume", "", ""),
    ]  # fmt: skip


def test_a_process_that_fell_silent_is_not_said_to_have_drained(tmp_path: Path) -> None:
    with served(tmp_path / "valkey") as server:
        client = redis.Redis.from_url(server.url)
        seconds, _ = client.time()
        # A stand-in for a worker whose event loop has been blocked for 17 of 20 seconds.
        client.zadd(PROCESSES, {"worker busy": seconds - 17})
        client.close()
        told = Terminal(tmp_path / "out", server.url)("drain", "--timeout", 60, code=1)
    assert "asked to drain: 1 worker" in told
    assert "not heard for 20 s (killed, or too busy to say): 1 worker" in told


def test_every_process_of_a_drained_fleet_ends_with_0_and_what_ran_is_reviewed_before(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    tasks = write_tasks(
        tmp_path / "t.jsonl", [sleeping(f"t{n}", 4, agent="oracle") for n in range(3)]
    )
    with served(tmp_path / "valkey") as server, ExitStack() as stack:
        say = Terminal(out, server.url)
        assert "nothing runs" in say("drain")
        env = {
            **QUICK, "FLEET_DRAIN_GRACE": "60", "FLEET_REDIS_URL": server.url, "FLEET_OUTPUT": out
        }  # fmt: skip
        commands = (
            ("dispatcher", tasks),
            ("workers", "code", "--no-model", "--concurrency", 2),
            ("reviewer",),
        )
        started = [
            stack.enter_context(process(*command, log=tmp_path / command[0], **env))
            for command in commands
        ]
        wait_until(lambda: sleepers(4) == 2, "two of three run", within=60)
        assert "1 tasks are left in the queue" in say("drain", "--timeout", 60)
        assert [one.wait(10) for one in started] == [0, 0, 0]
        now = say.json("status")["code"]
    assert (now["accepted"], now["waiting"], now["reviewing"]) == (2, 1, 0)
    assert now.get("released", 0) == 0
    assert sorted(decisions(out).values()) == ["accepted", "accepted"]


def test_pausing_everything_holds_for_scenes_that_have_had_no_task_yet(say: Terminal) -> None:
    told = say("pause", "--all", "--why", "night")
    assert "every scene is paused now" in told
    assert "web, gui" in say("status").replace("code, web", "web")
    assert say.json("status")["web"]["paused"].endswith(": night")
    assert "gui: goes on; 0 wait" in say("resume", "gui")
    told = say("resume", "--all")
    assert "web: goes on" in told
    assert "no scene was paused" not in told  # though one of them was not
    assert "no scene was paused" in say("resume", "--all")
    assert "not both" in say("pause", "code", "--all", code=2)


# -- dead letters by the thousand ------------------------------------------------------------


@pytest.fixture
def say(tmp_path: Path, valkey: EmbeddedServer) -> Iterator[Terminal]:
    """A terminal over a server with 1,200 dead letters; the youngest died an hour ago."""
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
        seconds, _ = client.time()
        with client.pipeline(transaction=False) as pipe:
            for n in range(1200):
                minutes = 1200 - n + 60
                bury(pipe, "code", f"task-{n}", (seconds - minutes * 60) * 1000, odd=n % 2 == 1)
            bury(pipe, "reasoning", "2024-01", (seconds - 7200) * 1000, stage="review",
                 reason="retries_exhausted", error="model_error: overloaded")  # fmt: skip
            pipe.execute()
    yield Terminal(tmp_path, valkey.url)


def bury(pipe: Any, scene: str, task_id: str, at: int, *, odd: bool = False, **more: str) -> None:
    payload = {"task": {"task_id": task_id, "description": "say \x1b[31mred"}}
    fields = {
        "id": task_id, "u": "r1-s0", "stage": "work", "lane": 2,
        "reason": "poison" if odd else "sandbox_lost", "error": "it \x1b[2J broke",
        "p": json.dumps(payload), "deliveries": 3, "history": "delivery 1\ndelivery 2",
        **more,
    }  # fmt: skip
    pipe.xadd(Keys(scene).dead, fields, id=f"{at}-0")
    pipe.hincrby(Keys(scene).stats, "dead", 1)


def ids(letters: Sequence[dict[str, Any]]) -> list[str]:
    return [letter["task_id"] for letter in letters]


def test_dead_letters_are_found_by_every_filter_and_only_a_page_of_them_is_listed(
    say: Terminal,
) -> None:
    listed = say("dead", "list")
    assert "100 of 1,201 dead letters, newest first; --limit shows more" in listed
    assert "\x1b" not in listed
    newest = say.json("dead", "list", "--limit", "2")
    assert ids(newest) == ["task-1199", "task-1198"]
    assert newest[0]["history"] == ["delivery 1", "delivery 2"]
    both = say.json("dead", "list", "--limit", "5000")
    assert len(both) == 1201
    poison = say.json("dead", "list", "--reason", "poison", "--limit", "5000")
    assert len(poison) == 600
    assert len(say.json("dead", "list", "--task", "task-11*", "--limit", "5000")) == 111
    assert ids(say.json("dead", "list", "--stage", "review")) == ["2024-01"]
    for reason in ("retries_exhausted", "model_error"):
        assert ids(say.json("dead", "list", "--reason", reason)) == ["2024-01"]
    assert ids(say.json("dead", "list", "--scene", "reasoning")) == ["2024-01"]
    young = say.json("dead", "list", "--since", "1h10m", "--scene", "code_exec")
    assert ids(young)[:2] == ["task-1199", "task-1198"]
    assert 8 <= len(young) <= 10
    old = say.json("dead", "list", "--older-than", "20h30m")
    assert ids(old)[-1] == "task-0"
    assert 29 <= len(old) <= 31
    assert "no dead letters match, of 1,201 in all" in say("dead", "list", "--reason", "timeout")


def test_a_dead_letter_is_shown_whole_by_its_entry_or_its_task(say: Terminal) -> None:
    [letter] = say.json("dead", "list", "--task", "task-7")
    for name in ("task-7", letter["entry"]):
        shown = say("dead", "show", name)
        assert "delivery 2" in shown
        assert '"task_id": "task-7"' in shown
        assert f"fleet dead retry {letter['entry']} --scene code" in shown
        assert "\x1b" not in shown
    assert "2024-01" in say("dead", "show", "2024-01")  # a task that looks like an entry
    assert "nobody: no such dead letter" in say("dead", "show", "nobody", code=1)


def test_retry_and_purge_do_what_the_dry_run_says_and_nothing_by_mistake(say: Terminal) -> None:
    for command in ("retry", "purge"):
        assert "or use --all" in say("dead", command, code=2)
        assert "not both" in say("dead", command, "task-1", "--all", code=2)
    filters = ("--all", "--reason", "poison", "--since", "2h")
    would = say("dead", "retry", *filters, "--dry-run")
    assert "would be queued again; nothing has been done" in would
    [count] = [int(line.split()[0]) for line in would.splitlines() if "would be" in line]
    assert 28 <= count <= 31
    would = say("dead", "purge", "--all", "--older-than", "10h", "--yes", "--dry-run")
    assert "would be thrown away; nothing has been done" in would
    assert len(say.json("dead", "list", "--limit", "5000")) == 1201
    assert say.json("audit") == []

    say("dead", "retry", "task-3", "nobody", code=1)
    assert say.json("status")["code"]["waiting"] == 1
    assert "1 queued again" in say("dead", "retry", "--all", "--limit", "1", "--why", "try")

    assert "--yes" in say("dead", "purge", "--all", code=2)
    told = say("dead", "purge", "--all", "--older-than", "10h", "--yes", "--why", "old")
    purged = int(told.split()[0].replace(",", ""))
    assert 655 <= purged <= 665
    assert len(say.json("dead", "list", "--limit", "5000")) == 1201 - 2 - purged
    rows = say.json("audit", "--limit", "5000")
    assert len(rows) == 2 + purged
    assert [row["target"] for row in rows[:2]] == ["task-3 r1-s0", "task-1199 r1-s0"]
    assert {row["detail"] for row in rows[2:]} == {"old"}


@pytest.mark.parametrize(
    "command",
    ["pause", "resume", "cancel", "drain", "audit", "status", "up",
     "budget set", "budget show", "budget clear"],
)  # fmt: skip
def test_help_has_an_example(command: str, say: Terminal) -> None:
    assert f"Example: fleet {command}" in say(*command.split(), "--help")


def test_a_scene_that_does_not_exist_is_told_from_a_typing_error(say: Terminal) -> None:
    assert "did you mean 'code'?" in say("pause", "kode", code=2)
    assert "there is: code" in say("resume", "xyz", code=2)
    for command in ("set", "clear"):
        assert "did you mean 'code'?" in say("budget", command, "-s", "kode", code=2)
    assert "or use --all" in say("pause", code=2)
