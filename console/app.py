"""The HTTP service people decide through: who may come in, and what they are told when it fails."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.failures import ConfigurationError
from common.logs import logger
from common.queue.connection import ServerGone
from common.store import StoreError
from common.waits import Contended
from common.words import person
from console.approvals import Desks, router
from console.connections import Connection

log = logger("console")

_MAX_BODY = 64 << 10
_SHORTEST = 16
"""Characters of a token."""
_LONGEST_NAME = 64
_DEADLINE = 30.0
"""Seconds for one request, its body included."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_HOW = (
    """FLEET_API_TOKENS='{"ana": "…"}', each token at least 16 characters; make one with """
    """`python3 -c "import secrets; print(secrets.token_urlsafe(24))"`"""
)


class People:
    """Who may decide, by token. Raises `ConfigurationError` for tokens that would not do."""

    def __init__(self, tokens: Mapping[str, SecretStr]) -> None:
        if not tokens:
            raise ConfigurationError(f"nobody may decide over HTTP yet: set {_HOW}")
        self._names: dict[bytes, str] = {}
        known: dict[str, str] = {}
        for name, secret in tokens.items():
            token = secret.get_secret_value()
            if not _is_name(name):
                raise ConfigurationError(f"FLEET_API_TOKENS: {name!r} is no name")
            if len(token) < _SHORTEST or not (token.isascii() and token.isprintable()):
                raise ConfigurationError(
                    f"FLEET_API_TOKENS: {name}'s token is too short, or not plain ASCII: {_HOW}"
                )
            if (other := known.setdefault(person(name), name)) != name:
                raise ConfigurationError(f"FLEET_API_TOKENS: {other} and {name} are one person")
            if (other := self._names.setdefault(_digest(token), name)) != name:
                raise ConfigurationError(
                    f"FLEET_API_TOKENS: {other} and {name} share a token: "
                    "who decided would not be known"
                )

    def of(self, authorization: str) -> str | None:
        """Return who an Authorization header belongs to; it takes the same time for anybody."""
        scheme, _, token = authorization.partition(" ")
        shown = _digest(token.strip())
        found = None
        for digest, name in self._names.items():
            if hmac.compare_digest(digest, shown):
                found = name
        return found if scheme.lower() == "bearer" else None


def _is_name(name: str) -> bool:
    plain = name.isprintable() and name == name.strip() and len(name) <= _LONGEST_NAME
    return plain and bool(person(name))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


class Gate:
    """Lets a request in, or says why not, before anything of its body is read.

    It must name this server as it is known (against DNS rebinding), show a token, and bring JSON.
    """

    def __init__(
        self, app: ASGIApp, *, people: People, host: str, names: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._people = people
        self._hosts = _LOOPBACK | {name.lower() for name in (host, *names)}
        self._anywhere = host in ("", "0.0.0.0", "::")  # noqa: S104 -- compared, not bound

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"nothing here speaks {scope['type']}")

        began = False

        async def guarded(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                headers = MutableHeaders(scope=message)
                headers["Cache-Control"] = "no-store"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        headers = Headers(scope=scope)
        status, why = self._refuse(scope, headers)
        if status:
            log.warning("console.refused", status=status, path=scope["path"][:200])
            challenge = {"WWW-Authenticate": "Bearer"} if status == 401 else None
            answer = JSONResponse({"error": why}, status, headers=challenge)
            await answer(scope, receive, guarded)
            return
        try:
            async with asyncio.timeout(_DEADLINE):
                await self._app(scope, receive, guarded)
        except TimeoutError:
            if began:
                raise
            late = JSONResponse({"error": f"not done within {_DEADLINE:.0f} s: repeat it"}, 408)
            await late(scope, receive, guarded)

    def _refuse(self, scope: Scope, headers: Headers) -> tuple[int, str]:
        """Return status and reason; 0 lets it in, and the scope says who it is."""
        if not self._known(headers.get("host", "")):
            return 421, "this server does not go by that name (header Host)"
        who = self._people.of(headers.get("authorization", ""))
        if who is None:
            return 401, "show your token: Authorization: Bearer …"
        if scope["method"] not in ("GET", "HEAD"):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return 415, "send JSON, with Content-Type: application/json"
        if int(headers.get("content-length", 0)) > _MAX_BODY:
            return 413, f"at most {_MAX_BODY} bytes, please"
        scope.setdefault("state", {})["who"] = who
        return 0, ""

    def _known(self, host: str) -> bool:
        name = _name(host)
        if name in self._hosts:
            return True
        # Bound to all addresses it has many names; rebinding needs one that somebody else owns.
        return self._anywhere and (_is_address(name) or name == socket.gethostname().lower())


def _name(host: str) -> str:
    """Return a Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _who(request: Request) -> str:
    return str(request.state.who)


def make_app(desks: Desks, people: People, *, host: str, names: Iterable[str] = ()) -> ASGIApp:
    """Return the service over the desk that ``desks`` leads each request to.

    ``host`` is the address it will listen on; ``names``: what it is called besides.
    """
    app = FastAPI(
        title="Trajectory Fleet", docs_url=None, redoc_url=None, openapi_url=None,
        redirect_slashes=False, max_body_size=_MAX_BODY,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )  # fmt: skip
    app.include_router(router(desks, _who))
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    for trouble in (ServerGone, ConfigurationError, StoreError, Contended, TimeoutError):
        app.add_exception_handler(trouble, _unable)
    app.add_exception_handler(Exception, _broken)
    return Gate(app, people=people, host=host, names=names)


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it, who has more to end than this."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; 0 is a free port. Raises `ConfigurationError`."""
    try:
        (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # Named TCP, not 0: asyncio turns Nagle's algorithm off only then, and each answer would
        # take 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise ConfigurationError(f"cannot listen on {host}: {error.strerror or error}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from None
    return listening


async def serve(app: ASGIApp, listening: socket.socket, ending: asyncio.Event) -> None:
    """Answer on a bound socket until ``ending`` is set; what is under way may end."""
    server = _Server(uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", server_header=False,
        proxy_headers=False, timeout_graceful_shutdown=5, http=Connection, ws="none",
    ))  # fmt: skip

    async def end() -> None:
        await ending.wait()
        server.should_exit = True

    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(end())
        await server.serve(sockets=[listening])
        waiting.cancel()


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    detail: Any = error.detail
    body = detail if isinstance(detail, dict) else {"error": str(detail)}
    if error.status_code == 400:  # no UTF-8, or nested too deep to be read
        body = {**body, "field": "body", "reason": str(detail)}
    return JSONResponse(body, error.status_code, headers=error.headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = [{"field": _field(one)[:200], "reason": _reason(one)} for one in error.errors()]
    first = fields[0]
    return JSONResponse(
        {"error": f"{first['field']}: {first['reason']}", **first, "fields": fields}, 422
    )


def _field(wrong: dict[str, Any]) -> str:
    where, *path = wrong["loc"]
    if wrong["type"] == "json_invalid":  # its path is a position in the text
        return str(where)
    return ".".join(map(str, path)) or str(where)


def _reason(wrong: dict[str, Any]) -> str:
    said = str(wrong["msg"]).removeprefix("Value error, ")
    more = wrong.get("ctx", {}).get("error") if wrong["type"] == "json_invalid" else None
    return f"{said}: {more}" if more else said


async def _unable(_: Request, error: Exception) -> JSONResponse:
    log.error("console.unable", error=str(error)[:500])
    return JSONResponse({"error": f"not now: {error}", "repeat": True}, 503)


async def _broken(_: Request, error: Exception) -> JSONResponse:
    log.error("console.broken", error=repr(error)[:500])
    return JSONResponse({"error": "something broke here; its log says what"}, 500)
