"""What the commands share: settings, the way to the server, and saying what went wrong."""

from __future__ import annotations

import asyncio
import fcntl
import getpass
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
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
from common.queue.embedded import EmbeddedServer
from common.settings import Settings, load
from common.store import Store, StoreError

T = TypeVar("T")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

_PATIENCE = 5.0
_LOOK = 0.05

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


def with_server(
    settings: Settings,
    ask: Callable[[Server], Awaitable[T]],
    *,
    revive: bool = False,
    share: bool = False,
) -> T:
    """Run ``ask`` against the server; an absent one is an error within seconds.

    ``revive``: where no `fleet up` is running over the output folder, start the server it left
    there until ``ask`` is done; ``share``: let other commands find it meanwhile.
    """

    async def run(url: str) -> T:
        server = Server(url, patience=_PATIENCE)
        try:
            return await ask(server)
        finally:
            await server.close()

    try:
        with revived(settings, share=share) if revive else nullcontext() as url:
            return asyncio.run(run(url or server_url(settings)))
    except (ConfigurationError, ServerGone) as error:
        fail(str(error), 78)
    except redis.exceptions.ResponseError as error:
        fail(f"the server refused: {error}", 78)
    except UnicodeEncodeError:
        fail("what was typed is not UTF-8", 2)


@contextmanager
def revived(settings: Settings, *, share: bool = False) -> Iterator[str | None]:
    """Start the server that `fleet up` left in the output folder; yields its address.

    None where another one is to be asked, or there is none. Raises `ConfigurationError` when
    somebody is just starting or ending it.
    """
    folder = state_folder(settings.output)
    told = folder / "server.json"
    if settings.redis_url or not os.access(folder / "valkey", os.W_OK):
        yield None
        return
    with (folder / "lock").open("a") as lock:
        if not _held(lock.fileno(), told):
            yield None
            return
        server = EmbeddedServer(folder / "valkey")
        server.start()
        try:
            if share:
                told.touch(mode=0o600)
                told.write_bytes(orjson.dumps({"url": server.url, "pid": os.getpid()}))
            yield server.url
        finally:
            if share:
                told.unlink(missing_ok=True)
            server.stop()


def _held(lock: int, told: Path) -> bool:
    """Take the lock of the output folder. False: somebody has it, and says where the server is."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if told.exists():
                return False
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"another command is at work on the server in {told.parent}, or `fleet up` is "
                    "starting or ending there: try again in a moment"
                ) from None
            time.sleep(_LOOK)
        else:
            return True


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
