"""The way to model servers: connections that all models of a process share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from common.llm.types import Headers

NEVER_CONNECTED = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    ConnectionRefusedError,
    aiohttp.InvalidURL,
)
"""Errors of a request that cannot have reached the server."""
_CONNECT = 10.0
"""Seconds."""


@cache
def proxy_for(url: str) -> str | None:
    """Return the proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY say for ``url``.

    One without a scheme (`proxy.corp:3128`) speaks HTTP, as it does for curl. Asked once:
    aiohttp's `trust_env` reads the environment and netrc in threads for each request.
    """
    parts = urlsplit(url)
    if parts.hostname is None or proxy_bypass(parts.hostname):
        return None
    proxy = getproxies().get(parts.scheme)
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


@dataclass(frozen=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: Mapping[str, str]
    """Looked up in any case."""
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")


class Pool:
    """The connections of this process, shared by all its models; closed with the last of them.

    aiohttp as it is: an SDK's layers on top of it cost more than all of it (0.5 ms of CPU a call
    against 0.26), and take a body of any shape for an answer.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._users = 0
        self.closed = False

    def share(self) -> Pool:
        self._users += 1
        return self

    async def release(self) -> None:
        self._users -= 1
        if self._users == 0:
            self.closed = True
            if self._session is not None:
                await self._session.close()

    async def post(self, url: str, body: bytes, headers: Headers) -> Answer:
        """Send one request; redirects are not followed.

        Raises `aiohttp.ClientError` and `OSError`. No limit on reading: each call has a total
        deadline.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Idle connections go before servers drop them (uvicorn, and so vLLM, after 5 s),
                # which would cost a retry.
                connector=aiohttp.TCPConnector(limit=1000, keepalive_timeout=4.5),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        async with self._session.post(
            url, data=body, headers=headers, allow_redirects=False, proxy=proxy_for(url)
        ) as response:
            return Answer(response.status, response.headers, await response.read())
