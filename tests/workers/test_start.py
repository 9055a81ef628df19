"""What a worker does about its model before it takes work: it asks once, and never insists."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import workers.__main__ as start
from common.failures import ConfigurationError
from common.llm.types import ModelMisconfigured, ModelRateLimited, ModelUnavailable
from common.metrics import Metrics
from common.queue.connection import Server
from common.quota.terms import BudgetExceeded
from common.serve import Health
from common.service import Service
from common.settings import load
from tests.helpers import eventually
from tests.standin import Standin, Turn
from workers.sandboxes.protocol import SandboxQuota, SandboxUnavailable


class Model:
    """Answers the first question as it is told; None: never."""

    def __init__(self, answer: str | Exception | None) -> None:
        self._answer = answer
        self.given_up = False

    async def check(self) -> str:
        if isinstance(self._answer, Exception):
            raise self._answer
        if self._answer is None:
            try:
                await asyncio.Event().wait()
            finally:
                self.given_up = True
        return str(self._answer)


@pytest.mark.parametrize(
    ("answer", "event", "said"),
    [
        ("m: answered in 0.1 s", "model.ready", "answered"),
        (ModelUnavailable("no answer"), "model.unavailable", "no answer"),
        (ModelRateLimited("429"), "model.unavailable", "429"),
        (BudgetExceeded("the run's budget is spent"), "model.unpaid", "budget"),
    ],
    ids=["ready", "away", "limited", "unpaid"],
)
async def test_how_the_model_is_is_said_and_nothing_more(
    answer: str | Exception, event: str, said: str
) -> None:
    with capture_logs() as logs:
        await start.greet(Model(answer))  # type: ignore[arg-type]
    [line] = logs
    assert line["event"] == event
    assert said in str(line.get("answer", line.get("error")))


async def test_a_wrong_key_ends_the_worker() -> None:
    with pytest.raises(ConfigurationError):
        await start.greet(Model(ModelMisconfigured("401")))  # type: ignore[arg-type]


async def test_a_long_line_before_the_model_does_not_hold_up_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start, "_CHECK", 0.05)
    model = Model(None)
    with capture_logs() as logs:
        await asyncio.wait_for(start.greet(model), 10)  # type: ignore[arg-type]
    assert [line["event"] for line in logs] == ["model.unavailable"]
    assert model.given_up


async def test_the_order_to_drain_ends_the_wait_for_the_model(
    server: Server, tmp_path: Path
) -> None:
    async with Standin() as silent:
        silent.script.add("*", Turn(text="Ready."), faults={"*": "stall"})
        settings = load(
            redis_url=server.url, output=tmp_path, llm_base_url=silent.url, llm_model="m"
        )
        service = Service(settings, server, Metrics(), Health(), asyncio.Event(), "w")
        working = asyncio.create_task(start.work(service, [], needs_model=True))
        await eventually(lambda: bool(silent.journal), "the model is asked")
        service.draining.set()
        await asyncio.wait_for(working, 5)


async def test_a_worker_waits_for_whoever_makes_its_sandboxes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Away:
        name = "code"

        def __init__(self) -> None:
            self.answers = [SandboxUnavailable("no daemon answers"), SandboxQuota("none free")]

        async def open(self) -> dict[str, str]:
            if self.answers:
                raise self.answers.pop(0)
            return {"backend": "docker"}

    monkeypatch.setattr(start, "_PAUSES", (0.01, 0.02))
    with capture_logs() as logs:
        await start.open_in_time(Away())  # type: ignore[arg-type]
    assert [line["event"] for line in logs] == ["scene.unavailable"] * 2 + ["scene.open"]
    assert "no daemon answers" in logs[0]["error"]


async def test_what_only_a_person_can_mend_ends_a_worker_at_once() -> None:
    class Broken:
        name = "code"

        async def open(self) -> dict[str, str]:
            raise ConfigurationError("the sandboxes do not hold")

    with pytest.raises(ConfigurationError, match="do not hold"):
        await start.open_in_time(Broken())  # type: ignore[arg-type]
