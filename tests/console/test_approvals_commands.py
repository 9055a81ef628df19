"""`fleet approvals` as a person types it: what is shown, what is decided, what is refused."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self
from urllib.request import Request, urlopen

import pytest

from common.audit import AuditLog, read
from common.failures import ConfigurationError
from common.presence import PROCESSES
from common.queue.connection import Server
from common.queue.control import Control, Who
from common.queue.embedded import EmbeddedServer
from common.queue.keys import Keys
from common.store import Store
from common.task import RevisionScore
from common.waits import Waits
from fleet import context
from tests.common.waiting import a_wait, approval, green, yellow
from tests.console.terminal import (
    Person,
    before,
    flush,
    on_server,
    queued,
    red,
    waiting,
    worded,
)
from tests.e2e.fleet import process, wait_until
from tests.exporters.attempts import attempt


def test_what_waits_is_listed_by_what_expires_first(person: Person, empty: str) -> None:
    assert "nothing waits" in person("list")
    soon = yellow(before("b"), "yel1").model_copy(
        update={"expires_at": time.time() + 7200.5, "asked_at": time.time() - 180}
    )
    waiting(empty, a_wait(before("a"), red("red1", people=2)), soon)
    said = person("list")
    assert said.index("yel1") < said.index("red1")
    assert "300.0 → 600.0" in said and "0 of 2" in said
    assert "3m ago" in said and "in 2h" in said
    assert "red1" not in person("list", "--level", "yellow")
    assert [item["approval_id"] for item in person.json("list", "--level", "red")] == ["red1"]
    assert person.json("list", "--scene", "web") == []


def test_one_is_shown_with_all_it_takes_to_decide(
    person: Person, empty: str, tmp_path: Path
) -> None:
    ran = attempt(task_id="words", attempt_id="r1-s0-1-0-d1-a")
    Store(tmp_path).write_attempt(ran)
    wait = worded()
    asked = wait.approvals[0]
    asked = asked.model_copy(update={"proposal": asked.proposal.model_copy(
        update={"evidence": (1, 9), "reason": "too short \x1b[31m"}
    )})  # fmt: skip
    came_to = RevisionScore(revision=1, attempt_id=ran.attempt_id, score=17, passed=False)
    waiting(empty, wait.model_copy(update={
        "approvals": (asked, red("red1")), "history": (came_to,), "greens": (green(wait.before),),
    }))  # fmt: skip
    said = person("show", "wor")
    for part in (
        "words1", "too short", "-Print 1.", "+Print 1!", "option 1, as proposed",
        "option 2, as it is now", "impact: more", "step 1 · run_python · ok", "print(1)",
        "step 9: there is none", "17", "temperature", "red1 (task.timeout)",
        "fleet approvals choose words1 --option N", "--edit",
    ):  # fmt: skip
        assert part in said, part
    assert "\x1b[31m" not in said
    assert person.json("show", "words1")["diff"] == ["@@ -1 +1 @@", "-Print 1.", "+Print 1!"]


def test_two_people_approve_and_the_next_revision_is_queued(
    person: Person, empty: str, tmp_path: Path
) -> None:
    waiting(empty, a_wait(before(), red("red1", people=2)))
    assert "1 more person must approve" in person("approve", "red", "--why", "small")
    assert "already" in person("approve", "red1")
    assert "1 of 2 people have approved" in person("show", "red1")
    said = person("approve", "red1", by="ben@desk")
    assert "revision 2 is queued" in said
    assert "no worker is running: start `fleet up` again" in said
    assert "already" in person("approve", "red", by="ben@desk")
    refused = person("reject", "red1", by="cho@desk", code=1)
    assert "approved by ana@desk and ben@desk at" in refused
    (entry,) = queued(empty)
    change = json.loads(entry["p"])["changes"][0]
    assert (change["to"], change["by"]) == (600.0, ["ana@desk", "ben@desk"])

    lines = [line for line in read(tmp_path) if line.get("approval_id") == "red1"]
    assert [line["via"] for line in lines if line["decision"] == "asked"] == ["cli"] * 5
    assert [line["by"] for line in lines if "entry" in line] == ["ana@desk", "ben@desk"]
    assert "approved" in person("list", "--all")
    assert [line["state"] for line in person.json("list", "--all")] == ["approved"]
    assert [line["state"] for line in person.json("list", "--all", "--level", "red")]
    assert person.json("list", "--all", "--level", "yellow") == []


def test_one_that_the_server_has_forgotten_is_told_from_the_audit_log(
    person: Person, empty: str
) -> None:
    waiting(empty, a_wait(before(), red("red1", people=2), red("red12")))
    person("approve", "red1", "--why", "small")
    person("reject", "red1", by="ben@desk")
    flush(empty)
    said = person("show", "red1")
    for part in ("it was rejected", "forgotten", "-300.0", "+600.0", "ana@desk", "small", "ben"):
        assert part in said, part
    told = person.json("show", "red1")
    assert (told["state"], [line["by"] for line in told["log"]]) == (
        "rejected", ["ana@desk", "ben@desk"],
    )  # fmt: skip
    assert "red1 was rejected" in person("approve", "red1", code=1)
    assert "no approval" in person("show", "red12", code=1)  # never decided


def test_one_that_was_cancelled_and_forgotten_has_no_change_to_show(
    person: Person, empty: str, tmp_path: Path
) -> None:
    waiting(empty, a_wait(before(), red("red1")))
    on_server(empty, lambda server: Control(server, "code").cancel("t", Who("cho", "no use")))
    on_server(empty, lambda server: AuditLog(tmp_path).copy(server, ["code"]))
    flush(empty)
    said = person("show", "red1")
    assert "it was cancelled" in said and "no use" in said
    assert "╭" not in said


def test_a_log_that_cannot_be_read_is_told_in_a_sentence(
    person: Person, empty: str, tmp_path: Path
) -> None:
    (tmp_path / "audit" / "decisions-2026-01.jsonl").mkdir(parents=True)
    for command in (("list", "--all"), ("show", "red1")):
        said = person(*command, code=1)
        assert said.startswith("fleet: ") and said.count("\n") == 1
        assert "decisions-2026-01.jsonl: Is a directory" in said


def test_ids_are_whole_in_a_narrow_terminal(
    person: Person, empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context.out, "_width", 80)
    asked = approval("0123456789", "task.constraints.memory_mb", 1024, before=512, people=2)
    waiting(empty, a_wait(before("a-task-with-quite-a-long-name-of-its-own"), asked))
    assert "0123456789" in person("list")
    person("reject", "0123456789", "--why", "a reason that is longer than its column")
    assert "0123456789" in person("list", "--all")


def test_whoever_speaks_is_the_user_it_runs_as(monkeypatch: pytest.MonkeyPatch) -> None:
    before = context.who().by
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert context.who().by == before

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert context.who().by.startswith(f"{os.getuid()}@")


def test_a_yellow_one_is_chosen_edited_or_kept(person: Person, empty: str, tmp_path: Path) -> None:
    words, hints = worded(), yellow(before("hints"), "hints1")
    waiting(empty, words, hints, yellow(before("more"), "more1"), yellow(before("kept"), "kept1"))
    for wrong in ((), ("--keep", "--option", 1)):
        assert "say which" in person("choose", "words1", *wrong, code=2)
    assert "no option 9: it has 2" in person("choose", "words1", "--option", 9, code=1)
    assert "choose or reject" in person("approve", "words1", code=1)
    assert "is no text: write JSON" in person("choose", "more1", "--edit", "Try", code=1)
    assert "none of its options" in person("choose", "more1", "--edit", '["Try"]', code=1)
    assert "description" in person("choose", "words1", "--edit", "\0", code=1)
    assert queued(empty) == []

    text = tmp_path / "text"
    text.write_text("Print 1,\nand nothing else.\n")
    assert "revision 2" in person("choose", "words1", "--edit-file", text)
    assert "revision 2" in person("choose", "hints1", "--option", 2)
    assert "rejected" in person("choose", "kept1", "--keep")
    assert "rejected" in person("reject", "more1")
    payloads = [json.loads(entry["p"]) for entry in queued(empty)]
    assert payloads[0]["task"]["description"] == "Print 1,\nand nothing else."
    assert payloads[1]["hints"] == ["Read it again."]
    assert len(payloads) == 2


def test_ids_that_name_none_or_several_decide_nothing(person: Person, empty: str) -> None:
    waiting(empty, a_wait(before("a"), red("abc1"), red("abd2")))
    assert "abc1, abd2" in person("reject", "ab", code=1)
    for name in ("x", "", "*", "../abc1", "abc1\n", "abc1\udcff"):
        assert "no approval" in person("reject", name, code=1)
    assert "UTF-8" in person("reject", "abc1", "--why", "\udcff", code=1)
    assert "waits for 1 more: abd2" in person("approve", "abc")


def test_whose_scene_no_worker_serves_is_told_to_start_one(person: Person, empty: str) -> None:
    def serve(scene: str) -> None:
        on_server(empty, lambda server: server.client.set(Keys(scene).card("w"), "{}"))

    waiting(empty, a_wait(before("a"), red("red1")), a_wait(before("b"), red("red2")))
    listed = {"worker w": time.time()}
    on_server(empty, lambda server: server.client.zadd(PROCESSES, listed))
    serve("web")
    assert "start `fleet up` again" in person("approve", "red1")
    serve("code")
    assert "start `fleet up` again" not in person("approve", "red2")


def test_what_is_decided_after_the_fleet_has_ended_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / ".fleet"
    left = EmbeddedServer(state / "valkey")
    left.start()
    waiting(left.url, a_wait(before(), red("red1")))
    left.stop()
    (state / "server.json").write_text(json.dumps({"url": left.url, "pid": 1}))  # it was killed

    person = Person(tmp_path, None, monkeypatch)
    assert "red1" in person("list")
    said = person("approve", "red1")
    assert "revision 2 is queued" in said and "start `fleet up` again" in said
    again = EmbeddedServer(state / "valkey")
    again.start()
    assert [entry["u"] for entry in queued(again.url)] == ["r2-s0"]
    again.stop()


def test_a_server_somebody_else_has_is_asked_or_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "PATIENCE", 0.2)
    person = Person(tmp_path, None, monkeypatch)
    assert "no `fleet up` is running" in person("list", code=1)
    state = tmp_path / ".fleet"
    (state / "valkey").mkdir(parents=True)
    with ExitStack() as ended, (state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "try again in a moment" in person("list", code=78)
        running = EmbeddedServer(tmp_path / "elsewhere")
        running.start()
        ended.callback(running.stop)
        (state / "server.json").write_text(json.dumps({"url": running.url}))
        assert "nothing waits" in person("list")


TOKEN = "ana-has-a-long-token"


class Service:
    """A real `fleet approvals serve` over an output folder."""

    def __init__(self, output: Path) -> None:
        self.log = output / "log"
        self._running = process(
            "fleet", "approvals", "serve", "--port", 0, "-o", output, log=self.log,
            FLEET_API_TOKENS=json.dumps({"ana": TOKEN}),
        )  # fmt: skip

    def __enter__(self) -> Self:
        self.process = self._running.__enter__()
        wait_until(lambda: "/api/approvals;" in self.log.read_text(), "it listens", within=30)
        self.url = self.log.read_text().split("approvals at ")[1].split(";")[0]
        return self

    def __exit__(self, *error: Any) -> None:
        self._running.__exit__(*error)

    def ask(self, path: str = "", method: str = "GET") -> Any:
        asked = Request(
            self.url + path, data=b"{}" if method == "POST" else None, method=method,
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        )  # fmt: skip
        with urlopen(asked, timeout=30) as answer:
            return json.load(answer)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """What a `fleet up` left behind: one unit waits for red1 and red2."""
    state = tmp_path / ".fleet"
    left = EmbeddedServer(state / "valkey")
    left.start()
    waiting(left.url, a_wait(before(), red("red1"), red("red2")))
    left.stop()
    return state


def test_the_service_outlives_a_fleet_that_comes_and_goes(state: Path, tmp_path: Path) -> None:
    told = state / "server.json"
    with Service(tmp_path) as service:
        assert "1 more: red2" in service.ask("/red1/approve", "POST")["then"]
        assert pending(json.loads(told.read_bytes())["url"]) == ["red2"]  # others find it

        with closing(context.hold_lock(state, "fleet up")):  # it gives way within seconds
            assert not told.exists()
            up = EmbeddedServer(state / "valkey")
            up.start()
            told.write_text(json.dumps({"url": up.url}))
            assert [one["approval_id"] for one in service.ask()] == ["red2"]
            assert service.ask("/red2/reject", "POST")["then"] == "revision 2 is queued"
            assert [entry["u"] for entry in queued(up.url)] == ["r2-s0"]
            up.kill()  # and leaves its address behind, like a fleet that was killed

        assert service.ask() == []
        assert service.ask("/red2")["state"] == "rejected"
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == 0
    assert not told.exists()


def pending(url: str) -> list[str]:
    async def work() -> list[str]:
        server = Server(url)
        found = [a.approval_id for wait in await Waits(server, "code").pending()
                 for a in wait.pending]  # fmt: skip
        await server.close()
        return found

    return asyncio.run(work())


def test_whoever_needs_the_folder_is_told_who_has_it(tmp_path: Path) -> None:
    with closing(context.hold_lock(tmp_path, "fleet approvals")):
        with pytest.raises(
            ConfigurationError, match=r"^`fleet approvals` \(process \d+\) works on"
        ):
            context.hold_lock(tmp_path, "fleet up", patience=0.2)
        assert not context.lock_wanted(tmp_path)
    with closing(context.hold_lock(tmp_path, "fleet up")):
        began = time.monotonic()
        with pytest.raises(ConfigurationError, match=r"^another `fleet up`"):
            context.hold_lock(tmp_path, "fleet up", patience=60)
        assert time.monotonic() - began < 10


def test_the_service_does_not_start_without_tokens(
    person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 'FLEET_API_TOKENS=\'{"ana"' in person("serve", code=78)
