"""The approvals over HTTP: a real server, a real queue, and clients of every kind."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from common.approvals import Approval, Wait
from common.audit import read
from common.failures import ConfigurationError
from common.process import free_port
from common.queue.connection import Server
from common.queue.control import Control, Who
from common.queue.keys import Keys
from common.task import Assignment, RevisionScore
from common.waits import Waits
from console import app as service
from console.app import People
from console.desk import Desk
from tests.common.waiting import a_wait, approval, green, put, yellow
from tests.console.serving import ANA, BEN, Client, serving
from tests.helpers import entries_of, task


def before(task_id: str = "t") -> Assignment:
    return Assignment(task=task(task_id))


def red(approval_id: str = "red1", people: int = 1, **more: Any) -> Approval:
    return approval(approval_id, "task.timeout", 600.0, before=300.0, people=people, **more)


async def queued(server: Server) -> list[str]:
    return [entry["u"] for lane in Keys("code").lanes for entry in await entries_of(server, lane)]


async def test_what_waits_is_listed_and_shown_with_all_it_takes_to_decide(
    server: Server, client: Client
) -> None:
    came_to = RevisionScore(revision=1, attempt_id="r1-s0-1-0-d1-a", score=10, passed=False)
    first = before("first")
    await put(
        server,
        a_wait(first, red(), red("red2"), history=(came_to,), greens=(green(first),)),
        yellow(before("second"), "yel1").model_copy(update={"expires_at": time.time() + 60}),
    )
    status, items = await client.get()
    assert status == 200
    assert [(i["approval_id"], i["level"], i["task_id"]) for i in items] == [
        ("yel1", "yellow", "second"), ("red1", "red", "first"), ("red2", "red", "first"),
    ]  # fmt: skip
    assert [i["approval_id"] for i in (await client.get("?level=yellow"))[1]] == ["yel1"]
    assert (await client.get("?scene=web"))[1] == []
    assert (await client.get("?scene=nowhere"))[0] == 422

    status, detail = await client.get("/red1")
    assert status == 200
    assert (detail["field"], detail["from"], detail["to"]) == ("task.timeout", 300.0, 600.0)
    assert detail["diff"][-2:] == ["-300.0", "+600.0"]
    assert detail["history"][0]["score"] == 10
    assert detail["greens"][0]["field"] == "task.sampling.temperature"
    assert [other["approval_id"] for other in detail["others"]] == ["red2"]
    assert detail["others"][0]["from"] == 300.0


async def test_a_red_one_needs_two_people_and_neither_counts_twice(
    server: Server, client: Client, tmp_path: Path
) -> None:
    await put(server, a_wait(before(), red(people=2)))
    status, said = await client.post("/red1/approve", {"why": "small"})
    assert (status, said["outcome"], said["then"]) == (200, "counted", "1 more person must approve")
    assert (said["approval"]["approved"], said["approval"]["from"]) == (1, 300.0)
    assert (await client.post("/red1/approve"))[1]["outcome"] == "already"
    assert await queued(server) == []

    status, said = await client.post("/red1/approve", token=BEN)
    assert (status, said["outcome"], said["next_unit"]) == (200, "decided", "r2-s0")
    assert said["then"] == "revision 2 is queued"
    for token in (ANA, BEN):
        status, said = await client.post("/red1/approve", token=token)
        assert (status, said["outcome"]) == (200, "already")
    status, said = await client.post("/red1/reject", token=BEN)
    assert (status, said["state"], said["by"]) == (409, "approved", "ben")
    assert abs(said["at"] - time.time()) < 60
    assert await queued(server) == ["r2-s0"]

    lines = [line for line in read(tmp_path, task_id="t") if line.get("approval_id")]
    asked = [(line["by"], line["via"]) for line in lines if line["decision"] == "asked"]
    assert asked[:2] == [("ana", "http"), ("ana", "http")]
    counted = [line for line in lines if "entry" in line]
    assert [(c["by"], c["said"], c["why"]) for c in counted] == [
        ("ana", "approve", "small"), ("ben", "approve", ""),
    ]  # fmt: skip
    assert counted[-1]["next_unit"] == "r2-s0"


async def test_words_that_race_send_one_revision_to_work(server: Server, client: Client) -> None:
    await put(server, a_wait(before(), red(people=2), red("red2")))
    said = [("red1/approve", ANA), ("red1/approve", BEN), ("red2/reject", ANA)] * 12
    answers = await asyncio.gather(*(client.post(f"/{path}", token=token) for path, token in said))
    assert {status for status, _ in answers} == {200}
    outcomes = [body["outcome"] for _, body in answers]
    assert sorted(o for o in outcomes if o != "already") == ["counted", "decided", "decided"]
    assert [body["next_unit"] for _, body in answers if body["next_unit"]] == ["r2-s0"]
    assert await queued(server) == ["r2-s0"]


async def test_a_yellow_one_gets_one_of_its_options_or_a_reason_why_not(
    server: Server, client: Client
) -> None:
    await put(server, yellow(before("hint"), "yel1"), a_wait(before("words"), approval(
        "yel2", "task.description", "Print 1!", before="Print 1.", level="yellow", editable=True,
        options=("Print 1!", "Print 1."),
    )))  # fmt: skip
    for body in (
        {}, {"option": 1, "value": []}, {"option": 3 + 1}, {"option": 0}, {"value": ["none"]},
        {"option": "x"}, {"option": 1, "by": "ben"}, {"value": None},
    ):  # fmt: skip
        status, said = await client.post("/yel1/choose", body)
        assert (status, bool(said["reason"]), bool(said["field"])) == (422, True, True), body
    status, said = await client.post("/yel1/approve")
    assert (status, said["reason"]) == (422, "this one is yellow: choose or reject it")
    status, said = await client.post("/yel2/choose", {"value": 7})
    assert (status, said["field"]) == (422, "task.description")
    assert (await client.post("/yel2/choose", {"value": "\0"}))[0] == 422
    assert (await client.post("/yel2/choose", {"value": 1 << 70}))[0] == 422
    for data, field in (
        (b'{"value": "\\ud800"}', "task.description"), (b'{"value": NaN}', "value"),
        (b'{"value": [{"a": 1e999}]}', "value"), (b'{"value": -Infinity}', "value"),
        (b'{"option": true}', "option"), (b'{"option": 1.0}', "option"), (b'{"value": ', "body"),
    ):  # fmt: skip
        status, said = await client.post(
            "/yel2/choose", data=data, json=None, headers={"Content-Type": "application/json"}
        )
        assert (status, said["field"], bool(said["reason"])) == (422, field, True), data
    assert said["reason"] == "JSON decode error: Expecting value"
    assert await queued(server) == []

    status, said = await client.post("/yel1/choose", {"option": 2})
    assert (status, said["approval"]["value"]) == (200, ["Read it again."])
    for path, body in (("choose", {"option": 1}), ("approve", {})):
        status, said = await client.post(f"/yel1/{path}", body, token=BEN)
        assert (status, said["by"], said["value"]) == (409, "ana", ["Read it again."]), path
    status, said = await client.post("/yel2/choose", {"value": "Print 1 only."})
    assert (status, said["outcome"], said["approval"]["value"]) == (200, "decided", "Print 1 only.")


async def test_only_whoever_has_a_token_is_heard_and_as_nobody_else(
    server: Server, client: Client
) -> None:
    await put(server, a_wait(before(), red()))
    for token in (None, "x", ANA[:-1], ANA + "x", "", "é" * 20):
        for answer in (
            await client.get(token=token),
            await client.post("/red1/approve", {}, token),
        ):
            assert answer[0] == 401
    for header in (f"Basic {ANA}", ANA, "Bearer", f"Token {ANA}"):
        assert (await client.get(token=None, headers={"Authorization": header}))[0] == 401
    wrong: list[Any] = [{"by": "ben"}, {"why": 3}, {"why": "x" * 5000}, [], "x"]
    for body in wrong:
        assert (await client.post("/red1/approve", body or [1]))[0] == 422
    assert await queued(server) == []
    assert (await client.get(token=None, headers={"Authorization": f"bearer  {BEN}"}))[0] == 200


async def test_what_a_web_page_could_send_decides_nothing(server: Server, client: Client) -> None:
    await put(server, a_wait(before(), red()))
    kinds = ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x")
    for kind in kinds:
        status, _ = await client.post(
            "/red1/approve", json=None, data=b'{"why": ""}', headers={"Content-Type": kind}
        )
        assert status == 415
    async with aiohttp.ClientSession() as session, session.post(
        f"{client.url}/api/approvals/red1/approve", data=b"{}",
        headers={"Authorization": f"Bearer {ANA}"}, skip_auto_headers=["Content-Type"],
    ) as answer:  # fmt: skip
        assert answer.status == 415
    status, _ = await client.ask("OPTIONS", "/red1/approve", None, headers={"Origin": "http://x"})
    assert status == 401
    for host in (
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "",
        "[::2]",
        "0.0.0.0",
    ):
        assert (await client.get(headers={"Host": host}))[0] in (400, 421)
    for host in ("localhost:1", "127.0.0.1", "[::1]:80", "LOCALHOST"):
        assert (await client.get(headers={"Host": host}))[0] == 200
    assert await queued(server) == []


async def test_bound_to_all_addresses_it_answers_to_those_and_its_own_name(
    server: Server, tmp_path: Path
) -> None:
    async with serving(server, tmp_path, host="0.0.0.0") as client:
        for host in ("192.168.1.4:80", socket.gethostname(), "localhost"):
            assert (await client.get(headers={"Host": host}))[0] == 200
        assert (await client.get(headers={"Host": "evil.example"}))[0] == 421


async def test_behind_a_proxy_it_answers_to_the_names_it_was_told(
    server: Server, tmp_path: Path
) -> None:
    async with serving(server, tmp_path, names=("Approvals.example.org",)) as client:
        assert (await client.get(headers={"Host": "approvals.example.org"}))[0] == 200
        assert (await client.get(headers={"Host": "other.example.org"}))[0] == 421


async def test_bodies_are_small_json_that_comes_in_time(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(server, a_wait(before(), red()))
    kind = {"Content-Type": "application/json"}
    for data in (b"{", b"", b"\xff", b"[" * 50_000):
        status, said = await client.post("/red1/approve", json=None, data=data, headers=kind)
        assert (status in (400, 422), said["field"]) == (True, "body"), data[:9]

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * 1024

    for big in (b" " * (65 << 10), chunks()):
        status, said = await client.post("/red1/approve", json=None, data=big, headers=kind)
        assert (status, len(said) < 100) == (413, True)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    monkeypatch.setattr(service, "_DEADLINE", 0.2)
    assert (await client.post("/red1/approve", json=None, data=slow(), headers=kind))[0] == 408
    assert await queued(server) == []


async def test_unknown_ids_and_odd_paths_lead_nowhere(server: Server, client: Client) -> None:
    await put(server, a_wait(before(), red()))
    for path in (
        "/nope", "/red", "/RED1", "/red1%00", "/red1*", "/%2e%2e", "/..%2f..%2fetc%2fpasswd",
        "/red1%0d%0aX: y", "/" + "a" * 3000, "/red1/", "/red1/approve/x", "//red1",
    ):  # fmt: skip
        assert (await client.get(path))[0] == 404, path
        assert (await client.post(f"{path}/approve"))[0] == 404, path
    for url in ("/docs", "/redoc", "/openapi.json", "/", "/api"):
        assert (await client.get(client.url + url))[0] == 404, url
    assert (await client.ask("DELETE", "/red1", ANA, json={}))[0] == 405
    assert await queued(server) == []


async def test_a_word_that_comes_too_late_is_told_so(server: Server, client: Client) -> None:
    def until(wait: Wait, at: float) -> Wait:
        return wait.model_copy(update={"expires_at": at})

    await put(
        server,
        until(a_wait(before("past"), red("past")), time.time() - 1),
        until(a_wait(before("ended"), red("ended")), 5.0),
        a_wait(before("stopped"), red("stopped")),
    )
    await Waits(server, "code").expire(6.0)
    await Control(server, "code").cancel("stopped", Who("cho", "no use"))
    for name in ("past", "ended", "stopped"):
        for path, body in (("approve", {}), ("choose", {"value": 1})):
            status, said = await client.post(f"/{name}/{path}", body)
            assert (status, bool(said["error"])) == (410, True), (name, path)
    assert await queued(server) == []


async def test_a_word_that_cannot_be_written_down_decides_nothing(
    server: Server, client: Client, tmp_path: Path
) -> None:
    await put(server, a_wait(before(), red()))
    (tmp_path / "audit").write_text("in the way")
    status, said = await client.post("/red1/approve")
    assert (status, said["repeat"]) == (503, True)
    assert await queued(server) == []
    (tmp_path / "audit").unlink()
    assert (await client.post("/red1/approve"))[1]["outcome"] == "decided"


async def test_trouble_is_told_without_a_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = Server(f"redis://:secret@127.0.0.1:{free_port()}/0", patience=0.1)
    async with serving(away, tmp_path) as client:
        status, said = await client.get()
        assert (status, said["repeat"]) == (503, True)
        assert "secret" not in said["error"]

        async def broken(*_: Any) -> None:
            raise ZeroDivisionError("the secret inside")

        monkeypatch.setattr(Desk, "pending", broken)
        status, said = await client.get()
        assert (status, said) == (500, {"error": "something broke here; its log says what"})
    await away.close()


async def test_it_ends_when_it_is_told_to_though_clients_stay(
    server: Server, tmp_path: Path
) -> None:
    async with serving(server, tmp_path) as client:
        assert (await client.get())[0] == 200
    with pytest.raises(aiohttp.ClientError):
        async with aiohttp.ClientSession() as session, session.get(client.url):
            pass


def test_tokens_that_would_not_do_are_refused_with_what_to_do() -> None:
    long = "x" * 16
    for tokens, said in (
        ({}, "FLEET_API_TOKENS"),
        ({"ana": "short"}, "too short"),
        ({"ana": "é" * 16}, "plain ASCII"),
        ({"ana": long, "ben": long}, "share a token"),
        ({"ana": long, "Ana": long + "y"}, "are one person"),
        ({"ana@one": long, "ana@other": long + "y"}, "are one person"),
        ({"@one": long}, "no name"),
        ({" ana": long}, "no name"),
        ({"": long}, "no name"),
    ):
        with pytest.raises(ConfigurationError, match=said) as refused:
            People({name: SecretStr(token) for name, token in tokens.items()})
        assert long not in str(refused.value)
