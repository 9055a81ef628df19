"""Everything in one terminal: server, model, dispatcher, workers, reviewer, and a live view."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import subprocess
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import orjson

from common.failures import ConfigurationError
from common.llm.providers import choose
from common.presence import Presence
from common.process import consumer_name, drain_on_signal, ended, free_port, until
from common.queue.connection import Server, ServerGone
from common.queue.embedded import EmbeddedServer
from common.quota.budgets import apply_budgets
from common.settings import Settings
from common.store import open_store
from fleet.children import Child, end_in_order, environment, last_words, python
from fleet.context import hold_lock, state_folder, who
from fleet.status import Snapshot, goes_on, look

_MODEL_DEADLINE = 900.0
"""Seconds for fetching and loading the embedded model; 480 MB on a slow line take a while."""
_LOOK = 0.5


class NoModel(ConfigurationError):
    """No provider is configured, and the embedded model cannot be had either."""


@dataclass(frozen=True)
class Plan:
    """What to bring up."""

    files: list[Path]
    scenes: list[str]
    workers: int
    concurrency: int
    until_done: bool
    needs_model: bool


@dataclass
class State:
    """What the live view shows besides the server's numbers."""

    model: str = "none: only oracle and nop tasks can run"
    note: str = ""
    began: float = field(default_factory=time.monotonic)
    children: list[Child] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """How it ended."""

    last: Snapshot
    finished: bool
    """Every task of the served scenes has ended, or waits for people; false when it was told to end
    before."""
    broken: tuple[str, ...] = ()
    """Of each process that did not end in order: its name, exit code and log."""


class Fleet:
    """Brings a fleet up over one output folder, and takes it down in order."""

    def __init__(
        self, plan: Plan, settings: Settings, draw: Callable[[State, Snapshot | None], None]
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.state = State()
        self._draw = draw
        self._folder = state_folder(settings.output)
        self._embedded: EmbeddedServer | None = None
        self._env: dict[str, str] = {}
        self._lock: IO[str] | None = None
        self._last = Snapshot({}, {}, {})
        self._asked_to_end: Callable[[], Awaitable[bool]]

    async def run(self) -> Outcome:
        """Work until done or told to end. Raises `ConfigurationError`."""
        draining = asyncio.Event()
        drain_on_signal(draining)
        finished = False
        losing = asyncio.create_task(asyncio.sleep(0))
        open_store(self.settings.output)
        await self._hold_lock()
        try:
            url = await self._server()
            server = Server(url)
            try:
                await server.check()
                losing = asyncio.create_task(_lose_patience(server, draining))
                await self._spend(server)
                async with Presence(server, "up", consumer_name(), draining) as presence:
                    self._asked_to_end = presence.drain_asked
                    await self._up(url, draining)
                    finished = await self._watch(server, draining)
                    asked = f" by {presence.asked}" if presence.asked else ""
                    self.state.note = (
                        f"draining{asked}: running attempts may end, the rest is handed back"
                    )
                    self._draw(self.state, self._last)
                    await end_in_order(
                        self.state.children, server, grace=self.settings.drain_grace,
                        asked=bool(presence.asked),
                    )  # fmt: skip
                self.state.note = ""
                with contextlib.suppress(ServerGone):
                    self._last = await look(server)
                self._draw(self.state, self._last)
            finally:
                losing.cancel()
                await server.close()
        finally:
            for child in self.state.children:
                child.kill()
            if self._embedded is not None:
                await asyncio.to_thread(self._embedded.stop)
                self._forget_server()
        broken = tuple(
            f"{c.name} ended with exit code {c.broken}: see {c.log}"
            for c in self.state.children
            if c.broken and c.name != "model"
        )
        return Outcome(self._last, finished, broken)

    async def _hold_lock(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = await asyncio.to_thread(hold_lock, self._folder, "fleet up")

    async def _server(self) -> str:
        if self.settings.redis_url is not None:
            return self.settings.redis_url
        self._embedded = EmbeddedServer(self._folder / "valkey")
        # In this thread: the server ends with the thread that started it.
        self._embedded.start()
        path = self._folder / "server.json"
        path.touch(mode=0o600)
        path.write_bytes(orjson.dumps({"url": self._embedded.url, "pid": os.getpid()}))
        return self._embedded.url

    def _forget_server(self) -> None:
        """Remove the address, unless the folder was replaced and it is somebody else's by now."""
        path = self._folder / "server.json"
        with contextlib.suppress(OSError, ValueError):
            if orjson.loads(path.read_bytes())["pid"] == os.getpid():
                path.unlink()

    async def _spend(self, server: Server) -> None:
        """Make the run's budget the one of the settings, where these have any."""
        usd, tokens = self.settings.budget_usd, self.settings.budget_tokens
        await apply_budgets(server, who("fleet up"), usd=usd, tokens=tokens)

    # -- up ----------------------------------------------------------------------------------

    async def _up(self, url: str, draining: asyncio.Event) -> None:
        plan, settings = self.plan, self.settings
        self._env = environment(
            FLEET_REDIS_URL=url,
            FLEET_OUTPUT=str(settings.output.resolve()),
            FLEET_AGENT=settings.agent,
            FLEET_COMMIT=settings.commit or _commit(),
            FLEET_ALLOW_UNSAFE="true" if settings.allow_unsafe else None,
        )
        announced = await self._start_model() if plan.needs_model else None
        # They get ready while the model loads, and wait for it; the file comes last, so that
        # nothing is queued for a model that cannot be had.
        model = [] if plan.needs_model else ["--no-model"]
        for number in range(1, plan.workers + 1):
            command = python(
                "workers", *plan.scenes, "--concurrency", str(plan.concurrency), *model
            )
            await self._start(f"worker-{number}", command)
        await self._start("reviewer", python("reviewer"))
        if announced is not None:
            await self._model_ready(announced, draining)
        if draining.is_set():
            return  # the order meant this fleet: nothing is queued after it
        once = ["--once"] if plan.until_done else []
        files = [str(path) for path in plan.files]
        await self._start("dispatcher", python("dispatcher", *once, *files), once=plan.until_done)

    async def _start(self, name: str, argv: list[str], *, once: bool = False) -> Child:
        child = Child(name, argv, self._folder / "logs" / f"{name}.log", self._env, once=once)
        await child.start()
        self.state.children.append(child)
        return child

    async def _start_model(self) -> Path | None:
        """Say which model acts; start the embedded one where no other is configured.

        Returns the file in which the embedded model will say that it is ready.
        """
        provider = choose(self.settings)[0]
        self.state.model = f"{provider.model} ({provider.name})"
        if provider.name != "embedded" or provider.base_url is not None:
            return None
        self.state.model = "embedded: fetching weights (once) and loading"
        log = self._folder / "logs" / "model.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        said = log.with_suffix(".json")
        said.unlink(missing_ok=True)
        key, port = secrets.token_hex(16), free_port()
        self._env |= {
            "FLEET_EMBEDDED_URL": f"http://127.0.0.1:{port}/v1",
            "FLEET_EMBEDDED_KEY": key,
        }
        # Its standard output is the announcement; the log takes the rest.
        child = _ModelChild(
            "model", python("common.llm.embedded", "--port", str(port)), log, self._env,
            announce=said,
        )  # fmt: skip
        await child.start()
        self.state.children.append(child)
        return said

    async def _model_ready(self, said: Path, draining: asyncio.Event) -> None:
        """Wait until the embedded model answers. Raises `NoModel`."""
        child = next(c for c in self.state.children if c.name == "model")
        deadline = time.monotonic() + _MODEL_DEADLINE
        while (told := _announced(said)) is None:
            late = time.monotonic() > deadline
            if child.pid is None or late:
                why = f"not ready within {_MODEL_DEADLINE:.0f} s" if late else last_words(child.log)
                raise NoModel(
                    f"the embedded model did not start: {why.rstrip('.')}. Set a provider's key "
                    "(see .env.example), or use --agent oracle to see the fleet without a model."
                )
            if draining.is_set():
                return
            self.state.note = f"model: {last_words(child.log)[:100]}"
            self._draw(self.state, None)
            await until(draining, asyncio.sleep(0.1))
        self.state.model = f"{told['model']} (embedded, on this CPU: small, for demonstration)"
        self.state.note = ""

    # -- watch -------------------------------------------------------------------------------

    async def _watch(self, server: Server, draining: asyncio.Event) -> bool:
        """Draw what happens until everything is done, or the order to drain comes: then False."""
        keepers = [
            asyncio.create_task(c.keep_alive(self._asked_to_end)) for c in self.state.children
        ]
        try:
            while not draining.is_set():
                if self._embedded is not None and not self._embedded.alive:
                    self._embedded.start()  # its folder holds everything it knew
                await until(draining, self._look(server))
                self._draw(self.state, self._last)
                for keeper in keepers:
                    if keeper.done():
                        keeper.result()
                if self.plan.until_done and self._done(self._last):
                    return True
                await until(draining, asyncio.sleep(_LOOK))
        finally:
            for child in self.state.children:
                child.stopping = True
            await ended(*keepers)
        return False

    async def _look(self, server: Server) -> None:
        self._last = await look(server)
        waits = self._last.held_up(self.plan.scenes) if self.plan.until_done else []
        self.state.note = "; ".join(waits)

    def _done(self, snapshot: Snapshot) -> bool:
        dispatcher = next(c for c in self.state.children if c.name == "dispatcher")
        served = [c for name, c in snapshot.scenes.items() if name in self.plan.scenes]
        # What waits for people may wait for days; started again, it goes on where they left it.
        return dispatcher.finished.is_set() and not any(goes_on(c) for c in served)


class _ModelChild(Child):
    """The embedded model: what it prints goes to a file of its own."""

    def __init__(
        self, name: str, argv: list[str], log: Path, env: dict[str, str], *, announce: Path
    ) -> None:
        super().__init__(name, argv, log, env)
        self._announce = announce

    async def start(self) -> None:
        with self.log.open("ab") as log, self._announce.open("wb") as announce:
            self.process = await asyncio.create_subprocess_exec(
                *self.argv, env=dict(self.env), stdin=asyncio.subprocess.DEVNULL,
                stdout=announce, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.started = time.monotonic()


async def _lose_patience(server: Server, draining: asyncio.Event) -> None:
    """Once told to end, wait seconds for an absent server, not for ever."""
    await draining.wait()
    server.patience = 5.0


def _announced(path: Path) -> dict[str, str] | None:
    """Return what the embedded model said when it was ready; None as long as it has not."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        told: dict[str, str] = orjson.loads(path.read_bytes().splitlines()[0])
        return told
    return None


def _commit() -> str | None:
    """Return the commit of this checkout, for provenance; None outside one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=12", "HEAD"],
            capture_output=True, timeout=5, text=True, check=False,
        )  # fmt: skip
        return done.stdout.strip() or None
    return None
