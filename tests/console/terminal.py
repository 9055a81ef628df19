"""Somebody at a terminal, and what waits for their word."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from typer.testing import CliRunner

from common.approvals import Approval, Wait
from common.queue.connection import Server
from common.queue.control import Who
from common.queue.keys import Keys
from common.task import Assignment
from fleet import approvals
from fleet.approvals import approvals_app
from tests.common.waiting import a_wait, approval, put
from tests.helpers import entries_of, task

T = TypeVar("T")


class Person:
    """Somebody at a terminal."""

    def __init__(self, output: Path, url: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._env: dict[str, str | None] = {k: None for k in os.environ if k.startswith("FLEET_")}
        self._env |= {"FLEET_OUTPUT": str(output), "FLEET_REDIS_URL": url}

    def __call__(self, *args: Any, by: str = "ana@desk", code: int = 0) -> str:
        """Run a command that ends with ``code``; returns all it said."""
        self._patch.setattr(approvals, "who", lambda why="": Who(by, why))
        done = CliRunner().invoke(approvals_app, [str(a) for a in args], env=self._env)
        assert done.exit_code == code, (args, done.output, done.exception)
        return done.output

    def json(self, *args: Any) -> Any:
        return json.loads(self(*args, "--json"))


def on_server(url: str, ask: Callable[[Server], Awaitable[T]]) -> T:
    async def work() -> T:
        server = Server(url)
        try:
            return await ask(server)
        finally:
            await server.close()

    return asyncio.run(work())


def flush(url: str) -> None:
    on_server(url, lambda server: server.client.flushall())


def waiting(url: str, *waits: Wait) -> None:
    on_server(url, lambda server: put(server, *waits))


def queued(url: str) -> list[dict[str, str]]:
    async def work(server: Server) -> list[dict[str, str]]:
        return [e for lane in Keys("code").lanes for e in await entries_of(server, lane)]

    return on_server(url, work)


def before(task_id: str = "t") -> Assignment:
    return Assignment(task=task(task_id))


def red(approval_id: str, people: int = 1) -> Approval:
    return approval(approval_id, "task.timeout", 600.0, before=300.0, people=people)


def worded(approval_id: str = "words1") -> Wait:
    return a_wait(before("words"), approval(
        approval_id, "task.description", "Print 1!", before="Print 1.", level="yellow",
        editable=True, options=("Print 1!", "Print 1."),
    ))  # fmt: skip
