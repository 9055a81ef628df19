"""What the commands share: settings, the way to the server, and saying what went wrong."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pwd
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Annotated, Any, NoReturn, TypeVar

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
from console.access import Lent

T = TypeVar("T")
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

PATIENCE = 5.0
"""Seconds for a server that does not answer, and for a lock that somebody has."""
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
    try:
        return known_url(settings)
    except ConfigurationError as error:
        fail(str(error))


def known_url(settings: Settings) -> str:
    """The same. Raises `ConfigurationError` where there is none."""
    if settings.redis_url:
        return settings.redis_url
    with suppress(OSError, ValueError, KeyError):
        return str(
            orjson.loads((state_folder(settings.output) / "server.json").read_bytes())["url"]
        )
    raise ConfigurationError(
        f"no queue server: no `fleet up` is running over {settings.output}/, "
        "and FLEET_REDIS_URL is not set"
    )


def who(why: str = "") -> Who:
    """Return who gives this command, for the audit: the user it runs as, whatever LOGNAME says."""
    uid = os.getuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # no entry in the user database, as in many containers
        name = str(uid)
    return Who(f"{name}@{socket.gethostname()}", why)


def with_server(
    settings: Settings, ask: Callable[[Server], Awaitable[T]], *, revive: str | None = None
) -> T:
    """Run ``ask`` against the server; an absent one is an error within seconds.

    ``revive``: the command that, where no `fleet up` is running over the output folder, starts the
    server it left there until ``ask`` is done.
    """

    async def run(url: str) -> T:
        server = Server(url, patience=PATIENCE)
        try:
            return await ask(server)
        finally:
            await server.close()

    with (
        in_a_sentence(),
        revived(settings, revive) if revive else nullcontext() as url,
    ):
        return asyncio.run(run(url or server_url(settings)))


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """End the command with one sentence where the server cannot be had, or refuses."""
    try:
        yield
    except (ConfigurationError, ServerGone) as error:
        fail(str(error), 78)
    except redis.exceptions.ResponseError as error:
        fail(f"the server refused: {error}", 78)
    except UnicodeEncodeError:
        fail("what was typed is not UTF-8", 2)


@contextmanager
def lent(settings: Settings, name: str) -> Iterator[Lent]:
    """Yield the server there is; where nobody runs one, that of the output folder is revived.

    Other commands find it meanwhile. Raises `ConfigurationError` where there is none.
    """
    with revived(settings, name, share=True) as url:
        yield Lent(url or known_url(settings), ours=url is not None)


@contextmanager
def revived(settings: Settings, name: str, *, share: bool = False) -> Iterator[str | None]:
    """Start the server that `fleet up` left in the output folder; yields its address.

    None where another one is to be asked, or there is none. ``name``: the command that does it;
    ``share``: let other commands find the server. Raises `ConfigurationError` when somebody is
    just starting or ending it.
    """
    folder = state_folder(settings.output)
    told = folder / "server.json"
    if settings.redis_url or not os.access(folder / "valkey", os.W_OK):
        yield None
        return
    with (folder / "lock").open("a+") as lock:
        if not _held(lock, told):
            yield None
            return
        _sign(lock, name)
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


def _held(lock: IO[str], told: Path) -> bool:
    """Take the lock of the output folder. False: somebody has it, and says where the server is."""
    deadline = time.monotonic() + PATIENCE
    while not _taken(lock):
        if told.exists():
            return False
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"{_holder(lock)} is at work on the server in {told.parent}, or starts or ends it: "
                "try again in a moment"
            )
        time.sleep(_LOOK)
    return True


def hold_lock(folder: Path, name: str, *, patience: float = PATIENCE) -> IO[str]:
    """Take the lock of a state folder for the command ``name``; it is held until it is closed.

    Whoever can give way is asked to, and has ``patience`` seconds: `fleet approvals serve` does,
    short commands end by themselves, and another ``name`` is not waited for. Raises
    `ConfigurationError` naming who has it.
    """
    deadline = time.monotonic() + patience
    lock = (folder / "lock").open("a+")
    with (folder / "lock.wanted").open("a") as wish:
        while not _taken(lock):
            _taken(wish, fcntl.LOCK_SH)
            time.sleep(_LOOK)  # whoever has just taken it has signed by then
            holder = _holder(lock)
            same = holder.startswith(f"`{name}`")
            if same or time.monotonic() > deadline:
                lock.close()
                raise ConfigurationError(
                    f"{'another ' if same else ''}{holder} works on {folder.parent}/ already; "
                    "end it, or give this one another folder with --output"
                )
    _sign(lock, name)
    return lock


def lock_wanted(folder: Path) -> bool:
    """Does somebody wait for the lock of a state folder (`hold_lock`)?"""
    with suppress(OSError), (folder / "lock.wanted").open("a") as wish:
        return not _taken(wish)
    return False  # the folder is gone: nobody can wait in it


def _taken(lock: IO[str], how: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(lock: IO[str], name: str) -> None:
    """Write into a lock who has it."""
    lock.truncate(0)
    lock.write(f"`{name}` (process {os.getpid()})")
    lock.flush()


def _holder(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read(200) or "another command"


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
