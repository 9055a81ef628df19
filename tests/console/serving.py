"""The service over a real queue, and clients that speak to it as one person or another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import aiohttp
from pydantic import SecretStr

from common.queue.connection import Server
from console.app import People, listen, make_app, serve
from console.desk import Desk

ANA, BEN = "ana-has-a-long-token", "ben-has-another-token"
TOKENS = {"ana": SecretStr(ANA), "ben": SecretStr(BEN)}


class Client:
    """Speaks to the service as one person; returns status and body."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self.url = session, url

    async def get(self, path: str = "", token: str | None = ANA, **more: Any) -> tuple[int, Any]:
        return await self.ask("GET", path, token, **more)

    async def post(
        self, path: str, body: Any = None, token: str | None = ANA, **more: Any
    ) -> tuple[int, Any]:
        return await self.ask("POST", path, token, **{"json": body or {}, **more})

    async def ask(self, method: str, path: str, token: str | None, **more: Any) -> tuple[int, Any]:
        headers = {**({"Authorization": f"Bearer {token}"} if token else {}),
                   **more.pop("headers", {})}  # fmt: skip
        url = path if path.startswith("http") else f"{self.url}/api/approvals{path}"
        async with self._session.request(
            method, url, headers=headers, allow_redirects=False, **more
        ) as answer:
            assert "access-control-allow-origin" not in answer.headers
            assert answer.headers["cache-control"] == "no-store"
            told = answer.content_type == "application/json"
            body = await answer.json() if told else await answer.text()
            assert "Traceback" not in str(body)
            return answer.status, body


@asynccontextmanager
async def serving(
    server: Server, output: Path, *, host: str = "127.0.0.1", names: tuple[str, ...] = ()
) -> AsyncIterator[Client]:
    desk = Desk(server, output, ledger_ttl=60.0)
    ending = asyncio.Event()
    with listen("127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        running = asyncio.create_task(
            serve(
                make_app(lambda: nullcontext(desk), People(TOKENS), host=host, names=names),
                listening,
                ending,
            )
        )
        try:
            async with aiohttp.ClientSession() as session:
                yield Client(session, url)
        finally:
            ending.set()
            await asyncio.wait_for(running, 10)
