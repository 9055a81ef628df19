"""One OpenSandbox server through its SDK: every call has a deadline and raises our errors.

This module needs the package `opensandbox`, and is imported only when the back-end is chosen.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from opensandbox import Sandbox, SandboxManager
from opensandbox.config import ConnectionConfig
from opensandbox.config.client_ip import CLIENT_IP_HEADER
from opensandbox.exceptions import SandboxException
from opensandbox.models.sandboxes import NetworkPolicy, SandboxFilter, SandboxInfo
from opensandbox.transport import RetryPolicy

from workers.sandboxes.opensandbox.failures import IN_TROUBLE, Trouble, nulls_in
from workers.sandboxes.opensandbox.settings import OpenSandboxSettings
from workers.sandboxes.protocol import SandboxStartError, SandboxUnavailable

REQUEST_PATIENCE = 15.0
"""Seconds for one request about a sandbox, its retries included; starting one has its own."""
PAGE = 100
TOKEN_VARIABLE, TOKEN_HEADER = "EXECD_ACCESS_TOKEN", "X-EXECD-ACCESS-TOKEN"
"""How execd learns, and then wants to hear, what only we may know: it is root in its sandbox, and
every program there can talk to it."""
SAME_TIME = timedelta(seconds=5)
"""Clocks closer than this agree; a header tells whole seconds only."""


@dataclass
class Seen:
    """What the server answered during one call, where the SDK may not tell."""

    nulls: list[str] = field(default_factory=list)
    """Fields that were null; the SDK cannot read some."""
    created: str | None = None
    """The sandbox that the server said it has made."""


_SEEN: ContextVar[Seen | None] = ContextVar("seen", default=None)


class _Config(ConnectionConfig):
    """The SDK's configuration, but nothing of it comes from the environment."""

    def get_api_key(self) -> str:
        return self.api_key or ""


class Server:
    """The lifecycle of sandboxes on one server."""

    def __init__(self, settings: OpenSandboxSettings) -> None:
        self.name = f"the OpenSandbox server {settings.domain}"
        self.settings = settings
        self.skew = timedelta()
        """How far the server's clock is ahead of ours; lives are renewed in its time."""
        self._config = _config(settings, self._look_before, self._look_at)
        self._base = httpx.URL(self._config.get_base_url())

    def now(self) -> datetime:
        """Return the time by the server's clock."""
        return datetime.now(UTC) + self.skew

    async def create(
        self,
        image: str,
        *,
        ttl: float,
        metadata: Mapping[str, str],
        memory_mb: int,
        policy: NetworkPolicy | None,
        seen: Seen,
        chosen_by_task: bool = False,
    ) -> Sandbox:
        """Start a sandbox, whose execd obeys only us, and wait until it answers.

        What a call that failed has started all the same is the caller's to end: it is named in
        ``seen``, or, where the answer was lost, found by its labels.
        """
        patience, token = self.settings.create_timeout, secrets.token_urlsafe(24)
        # Taken out again where a request goes to the server itself, which has no use for it.
        headers = {**self._config.headers, TOKEN_HEADER: token}
        trouble = Trouble(starting=True, chosen_by_task=chosen_by_task, secret=token)
        with self._told(f"starting a sandbox of {image}", seen, trouble):
            try:
                async with asyncio.timeout(patience):
                    return await Sandbox.create(
                        image,
                        timeout=timedelta(seconds=ttl),
                        ready_timeout=timedelta(seconds=patience),
                        env={TOKEN_VARIABLE: token},
                        metadata=dict(metadata),
                        resource={"cpu": f"{self.settings.cpus:g}", "memory": f"{memory_mb}Mi"},
                        network_policy=policy,
                        connection_config=self._config.model_copy(update={"headers": headers}),
                        health_check_polling_interval=timedelta(seconds=0.05),
                    )
            except TimeoutError:
                raise SandboxStartError(
                    f"{self.name} did not start a sandbox of {image} within {patience:g} s"
                ) from None

    async def kill(self, sandbox_id: str) -> None:
        async with self._call(f"ending sandbox {sandbox_id}") as manager:
            await manager.kill_sandbox(sandbox_id)

    async def renew(self, sandbox_id: str, ttl: float) -> None:
        """Let it live ``ttl`` seconds from now. Raises `SandboxLost` when it does not any more."""
        async with self._call(f"renewing sandbox {sandbox_id}") as manager:
            await manager.renew_sandbox(sandbox_id, timedelta(seconds=ttl) + self.skew)

    async def relabel(self, sandbox_id: str, labels: Mapping[str, str]) -> None:
        async with self._call(f"labelling sandbox {sandbox_id}") as manager:
            await manager.patch_sandbox_metadata(sandbox_id, dict(labels))

    async def info(self, sandbox_id: str) -> SandboxInfo:
        async with self._call(f"looking at sandbox {sandbox_id}") as manager:
            return await manager.get_sandbox_info(sandbox_id)

    async def find(self, metadata: Mapping[str, str]) -> AsyncIterator[SandboxInfo]:
        """Yield every sandbox with these labels."""
        page = 1
        while True:
            wanted = SandboxFilter(metadata=dict(metadata), page=page, page_size=PAGE)
            async with self._call("listing sandboxes") as manager:
                found = await manager.list_sandbox_infos(wanted)
            for info in found.sandbox_infos:
                yield info
            if not found.pagination.has_next_page:
                return
            page += 1

    async def version(self) -> str:
        """Return what the server calls its version; old ones do not say."""
        root, key = self._config.get_base_url().removesuffix("/v1"), self._config.get_api_key()
        # Never closed: that would close the transport, which is everybody's.
        client = httpx.AsyncClient(
            transport=self._config.transport, headers={"OPEN-SANDBOX-API-KEY": key}
        )
        try:
            async with asyncio.timeout(REQUEST_PATIENCE):
                answer = await client.get(f"{root}/version")
            if answer.status_code in IN_TROUBLE or answer.status_code >= 500:
                raise SandboxUnavailable(f"{self.name} is in trouble (HTTP {answer.status_code})")
            return str(answer.json()["version"])
        except (httpx.HTTPError, TimeoutError):
            raise SandboxUnavailable(f"{self.name} cannot be reached") from None
        except (ValueError, KeyError, TypeError):
            return "unknown"

    async def addresses(self) -> list[tuple[str, int]]:
        """Return where others may reach the server: nobody else's way to it is by our loopback."""
        port = self._base.port or (443 if self._base.scheme == "https" else 80)
        lookup = asyncio.get_running_loop().getaddrinfo(
            self._base.host, port, family=socket.AF_INET, type=socket.SOCK_STREAM
        )
        try:
            async with asyncio.timeout(REQUEST_PATIENCE):
                found = {address[0] for *_, address in await lookup}
        except (OSError, TimeoutError):
            raise SandboxUnavailable(f"{self.name} has no address") from None
        return [(str(host), port) for host in sorted(found) if not str(host).startswith("127.")]

    async def close(self) -> None:
        if self._config.transport is not None:
            await self._config.transport.aclose()

    @asynccontextmanager
    async def _call(self, doing: str) -> AsyncIterator[SandboxManager]:
        with self._told(doing, Seen()):
            try:
                async with asyncio.timeout(REQUEST_PATIENCE):
                    yield await SandboxManager.create(self._config)
            except TimeoutError:
                raise SandboxUnavailable(
                    f"{doing}: {self.name} did not answer within {REQUEST_PATIENCE:g} s"
                ) from None

    @contextmanager
    def _told(self, doing: str, seen: Seen, trouble: Trouble = Trouble()) -> Iterator[None]:
        """Turn the SDK's errors into ours."""
        token = _SEEN.set(seen)
        try:
            yield
        except SandboxException as error:
            raise trouble.meaning(
                error, self.name, doing, nulls=seen.nulls, created=seen.created
            ) from None
        finally:
            _SEEN.reset(token)

    def _is_servers_own(self, url: httpx.URL) -> bool:
        """Say whether the server itself answers there, and not somebody in a sandbox."""
        base = self._base
        origin = (url.scheme, url.host, url.port) == (base.scheme, base.host, base.port)
        return origin and url.path.startswith(f"{base.path}/") and "/proxy/" not in url.path

    async def _look_before(self, request: httpx.Request) -> None:
        """Keep what one execd knows from everybody else."""
        if self._is_servers_own(request.url):
            request.headers.pop(TOKEN_HEADER, None)

    async def _look_at(self, response: httpx.Response) -> None:
        """Note what the SDK does not tell: the server's clock, and nulls it cannot read."""
        if not self._is_servers_own(response.request.url):
            return  # whoever answers there may say what he likes
        with suppress(KeyError, ValueError, TypeError):
            skew = parsedate_to_datetime(response.headers["date"]) - datetime.now(UTC)
            self.skew = skew if abs(skew) > SAME_TIME else timedelta()
        seen = _SEEN.get()
        path, kind = response.request.url.path, response.headers.get("content-type", "")
        if seen is None or not kind.startswith("application/json"):
            return
        with suppress(ValueError):
            answer = json.loads(await response.aread())
            seen.nulls += nulls_in(answer)
            if response.request.method == "POST" and path.endswith("/sandboxes"):
                seen.created = answer.get("id") if isinstance(answer, dict) else None


def _config(settings: OpenSandboxSettings, look_before: Any, look: Any) -> _Config:
    """Describe the connection to the SDK, without its telemetry, and with one pool for all."""
    config = _Config(
        api_key=settings.api_key.get_secret_value() if settings.api_key else None,
        domain=settings.domain,
        protocol=settings.protocol,
        request_timeout=timedelta(seconds=settings.create_timeout),
        use_server_proxy=settings.use_server_proxy,
        endpoint_cache_disabled=True,
        disable_metrics=True,
        event_hooks={"request": [look_before], "response": [look]},
        # The first look at a new sandbox mostly comes too early: half a second of waiting there,
        # as is usual with the SDK, would be half of a start.
        retry_policy=RetryPolicy(
            max_retries=3, initial_backoff=timedelta(seconds=0.05), max_backoff=timedelta(seconds=2)
        ),
    )
    # The SDK would tell every server, and every sandbox, the address of this host.
    config.headers.pop(CLIENT_IP_HEADER, None)
    # It logs with traces what it also raises, and each request.
    logging.getLogger("opensandbox").setLevel(logging.CRITICAL)
    # Nobody but this process has connections here, and each step holds one: no limit.
    config.transport = config.new_owned_transport(max_connections=None)
    config._owns_transport = False
    return config
