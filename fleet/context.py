"""What the commands share: settings, the way to the server, and saying what went wrong."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import redis
import typer
from rich.console import Console
from rich.text import Text

from common import logs
from common.failures import ConfigurationError
from common.queue.connection import Server, ServerGone
from common.queue.control import Who
from common.settings import Settings, load
from common.store import Store, StoreError

T = TypeVar("T")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_PATIENCE = 5.0

Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The store's folder (FLEET_OUTPUT, output).")
]


def fail(message: str, code: int = 1) -> NoReturn:
    """Say what is wrong and end the command."""
    err.print(Text("fleet: ", style="bold red") + clean(message, style="none"))
    raise typer.Exit(code)


def clean(text: str, style: str = "") -> Text:
    """Return text as text: no markup, and no control character that reaches the terminal."""
    mark = "\N{REPLACEMENT CHARACTER}"
    return Text("".join(c if c in "\n\t" or c.isprintable() else mark for c in text), style=style)


def settings_for(output: Path | None = None, **more: Any) -> Settings:
    """Read the settings, with what the command line said on top."""
    try:
        settings = load(output=output, **more)
    except ConfigurationError as error:
        fail(str(error), 78)
    logs.configure("ERROR", service="fleet")
    return settings


def state_folder(output: Path) -> Path:
    """Where `fleet up` keeps its own things below the output folder."""
    return output / ".fleet"


def server_url(settings: Settings) -> str:
    """Return the server of FLEET_REDIS_URL, or the one a running `fleet up` started."""
    if settings.redis_url:
        return settings.redis_url
    with suppress(OSError, ValueError, KeyError):
        return str(
            orjson.loads((state_folder(settings.output) / "server.json").read_bytes())["url"]
        )
    fail(
        f"no queue server: no `fleet up` is running over {settings.output}/, "
        "and FLEET_REDIS_URL is not set"
    )


def who(why: str = "") -> Who:
    """Return who gives this command, for the audit."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # no entry in the user database, as in many containers
        name = str(os.getuid())
    return Who(f"{name}@{socket.gethostname()}", why)


def with_server(settings: Settings, ask: Callable[[Server], Awaitable[T]]) -> T:
    """Run ``ask`` against the server; an absent one is an error within seconds."""

    async def run() -> T:
        server = Server(server_url(settings), patience=_PATIENCE)
        try:
            return await ask(server)
        finally:
            await server.close()

    try:
        return asyncio.run(run())
    except (ConfigurationError, ServerGone) as error:
        fail(str(error), 78)
    except redis.exceptions.ResponseError as error:
        fail(f"the server refused: {error}", 78)
    except UnicodeEncodeError:
        fail("what was typed is not UTF-8", 2)


def store_of(settings: Settings) -> Store:
    if not (settings.output / "trajectories").is_dir():
        fail(f"nothing in {settings.output}/ yet: no attempt has been written there")
    return Store(settings.output)


def guard(work: Callable[[], T]) -> T:
    """Run ``work``; what the store cannot do becomes one sentence."""
    try:
        return work()
    except StoreError as error:
        fail(str(error))
