"""`fleet approvals`: what waits for a person, looked at and decided; here, or over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, closing
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import orjson
import typer
from pydantic import JsonValue
from rich.text import Text

from common.approvals import Word
from common.failures import ConfigurationError
from common.process import drain_on_signal
from common.queue.connection import Server
from common.review import Level
from common.settings import Settings
from common.store import StoreError
from common.waits import Contended, Decided
from common.words import value_now
from console.access import Access, Lent
from console.desk import Ambiguous, Desk, Forgotten, Found, Unfit, Unknown
from console.shown import Detail, Item, what_follows
from fleet import approval_views as views
from fleet.arguments import SceneOption, Why
from fleet.context import (
    Output,
    clean,
    fail,
    in_a_sentence,
    lent,
    lock_wanted,
    out,
    settings_for,
    state_folder,
    who,
    with_server,
)

T = TypeVar("T")
approvals_app = typer.Typer(
    help="What waits for a person: list, look, choose, approve, reject.", no_args_is_help=True
)

Id = Annotated[
    str, typer.Argument(metavar="ID", help="Of `fleet approvals list`, or how it begins.")
]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


class OnlyLevel(StrEnum):
    YELLOW = "yellow"
    RED = "red"


@approvals_app.command("list", epilog="Example: fleet approvals list --level red")
def approvals_list(
    scene: SceneOption = None,
    level: Annotated[OnlyLevel | None, typer.Option(help="Only these.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also what is decided by now.")] = False,
    as_json: Json = False,
    output: Output = None,
) -> None:
    """List what waits for a person, soonest to expire first."""
    settings = settings_for(output)

    async def look(desk: Desk) -> tuple[list[Found], list[dict[str, Any]]]:
        wanted: Level | None = level.value if level else None
        found = await desk.pending(scene, wanted)
        lines = desk.decided().values() if every else []
        return found, [
            line for line in lines
            if scene in (None, line.get("scene")) and wanted in (None, line.get("level"))
        ]  # fmt: skip

    found, lines = _at_desk(settings, look)
    if as_json:
        _print([Item.of(one).model_dump(mode="json") for one in found] + lines)
        return
    if found:
        out.print(views.pending(found))
        out.print("look closer with: fleet approvals show ID")
    else:
        out.print("nothing waits for a person")
    if lines:
        out.print(views.decided(lines))


@approvals_app.command("show", epilog="Example: fleet approvals show 3f9c")
def approvals_show(approval: Id, as_json: Json = False, output: Output = None) -> None:
    """Show one approval: what is proposed and why, the difference, the impact, the scores."""
    settings = settings_for(output)

    async def look(desk: Desk) -> Found | Forgotten:
        try:
            return await desk.find(approval)
        except Forgotten as forgotten:
            return forgotten

    found = _at_desk(settings, look)
    if isinstance(found, Forgotten):
        if as_json:
            _print({**found.lines[-1], "log": found.lines})
        else:
            out.print(views.forgotten(found.lines))
    elif as_json:
        _print(Detail.of(found).model_dump(mode="json"))
    else:
        out.print(views.everything(found, settings.output))


@approvals_app.command("choose", epilog="Example: fleet approvals choose 3f9c --option 2")
def approvals_choose(
    approval: Id,
    option: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of its options.")] = None,
    edit: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A value of your own; JSON unless a text.")
    ] = None,
    edit_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The same, from a file.", dir_okay=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave it as it is.")] = False,
    why: Why = "",
    output: Output = None,
) -> None:
    """Give a yellow one its value: one of its options, a value of your own, or as it is."""
    ways = (option is not None, edit is not None, edit_file is not None, keep)
    if sum(ways) != 1:
        fail("say which: --option N, --edit TEXT, --edit-file FILE or --keep", 2)
    if edit_file is not None:
        edit = _text_in(edit_file)

    def value(found: Found) -> JsonValue:
        options = found.approval.options
        if option is not None and option > len(options):
            raise Unfit(f"there is no option {option}: it has {len(options)}")
        if option is not None:
            return options[option - 1]
        if edit is None:
            return value_now(found.wait, found.approval)
        return _own_value(found, edit)

    _say(approval, "choose", why, output, value)


@approvals_app.command(
    "approve", epilog='Example: fleet approvals approve 3f9c --why "image is ours"'
)
def approvals_approve(approval: Id, why: Why = "", output: Output = None) -> None:
    """Agree to a red one. It is applied once as many people as it takes agree."""
    _say(approval, "approve", why, output)


@approvals_app.command("reject", epilog="Example: fleet approvals reject 3f9c")
def approvals_reject(approval: Id, why: Why = "", output: Output = None) -> None:
    """Refuse one. The task goes on with what else is decided, or ends as rejected."""
    _say(approval, "reject", why, output)


@approvals_app.command("serve", epilog="Example: fleet approvals serve --port 8790")
def approvals_serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8790,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME", help="What a proxy calls this host; repeatable."),
    ] = None,
    output: Output = None,
) -> None:
    """Serve approvals over HTTP (/api/approvals) to those who have a token."""
    try:
        from console.app import People, listen, make_app, serve
    except ImportError:
        fail("this needs more packages: pip install trajectory-fleet[console]", 78)
    settings = settings_for(output)
    try:
        people = People(settings.api_tokens)
    except ConfigurationError as error:
        fail(str(error), 78)

    async def work() -> None:
        ending = asyncio.Event()
        drain_on_signal(ending)
        async with _access(settings) as access:
            async with access():
                pass  # what is wrong with the server is said before anybody asks
            with closing(listen(host, port)) as listening:
                bound = listening.getsockname()[1]
                shown = f"[{host}]" if ":" in host else host
                out.print(f"approvals at http://{shown}:{bound}/api/approvals; Ctrl-C ends this")
                app = make_app(access, people, host=host, names=names or ())
                await serve(app, listening, ending)

    with in_a_sentence():
        asyncio.run(work())


def _access(settings: Settings) -> Access:
    """Return the way to the approvals for a service, which outlives many a `fleet up`."""

    def find() -> AbstractContextManager[Lent]:
        return lent(settings, "fleet approvals serve")

    def wanted() -> bool:
        return lock_wanted(state_folder(settings.output))

    async def open_desk(server: Server) -> Desk:
        await server.check()
        return Desk(server, settings.output, ledger_ttl=settings.ledger_ttl)

    return Access(find, wanted, open_desk)


def _at_desk(settings: Settings, work: Callable[[Desk], Awaitable[T]]) -> T:
    """Do something with the approvals; what cannot be done becomes one sentence."""

    async def ask(server: Server) -> T:
        return await work(Desk(server, settings.output, ledger_ttl=settings.ledger_ttl))

    try:
        return with_server(settings, ask, revive="fleet approvals")
    except (Unknown, Ambiguous, Unfit, StoreError, Contended) as error:
        fail(str(error))


def _say(
    approval: str,
    said: Literal["choose", "approve", "reject"],
    why: str,
    output: Path | None,
    value: Callable[[Found], JsonValue] = lambda _: None,
) -> None:
    """Send a person's word, and tell what follows."""
    by = who(why).by

    async def send(desk: Desk) -> tuple[Decided, bool]:
        found = await desk.find(approval)
        word = Word(by=by, at=time.time(), said=said, value=value(found), why=why)
        done = await desk.say(found, word, via="cli")
        return done, done.next is not None and not await desk.worked(done.wait.scene)

    decided, idle = _at_desk(settings_for(output), send)
    _tell(decided, idle)


def _tell(decided: Decided, idle: bool) -> None:
    proposal, task = decided.approval.proposal, decided.wait.task_id
    if decided.outcome == "refused":
        fail(f"{task}: {proposal.field}: {decided.reason}")
    if decided.outcome == "already":
        out.print(clean(f"already: {decided.reason}"))
        return
    out.print(clean(f"{task}: {proposal.field}: {what_follows(decided)}"))
    if idle:
        out.print(
            Text("no worker is running: start `fleet up` again and it goes on", style="yellow")
        )


def _own_value(found: Found, text: str) -> JsonValue:
    """Read a value as typed: a text for what is a text, else JSON. Raises `Unfit`."""
    approval = found.approval
    seen = (approval.proposal.before, approval.proposal.after, *approval.options)
    example = next((value for value in seen if value is not None), "")
    if isinstance(example, str):
        return text
    try:
        value: JsonValue = orjson.loads(text)
    except ValueError:
        shown = orjson.dumps(example).decode()
        raise Unfit(
            f"{approval.proposal.field} is no text: write JSON, such as {shown[:200]}"
        ) from None
    return value


def _text_in(path: Path) -> str:
    try:
        return path.read_text("utf-8").removesuffix("\n")
    except OSError as error:
        fail(f"{path}: {error.strerror or error}", 2)
    except ValueError:
        fail(f"{path} is not UTF-8 text", 2)


def _print(told: Any) -> None:
    print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())  # noqa: T201
