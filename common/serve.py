"""One port per process: /metrics for Prometheus, /healthz and /readyz for whoever restarts it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from common.failures import ConfigurationError
from common.logs import logger
from common.metrics import Metrics

log = logger("serve")


class Health:
    """What a process knows of its own state."""

    def __init__(self, *, stale: float = 60.0) -> None:
        self._stale = stale
        self._turn = time.monotonic()
        self.draining = False

    def turn(self) -> None:
        """The main loop has come round."""
        self._turn = time.monotonic()

    @property
    def ready(self) -> tuple[bool, str]:
        silent = time.monotonic() - self._turn
        if self.draining:
            return False, "draining"
        if silent > self._stale:
            return False, f"main loop silent for {silent:.0f} s"
        return True, "ok"


@asynccontextmanager
async def serving(
    metrics: Metrics,
    health: Health,
    *,
    host: str,
    port: int,
    ping: Callable[[], Awaitable[bool]],
) -> AsyncIterator[int]:
    """Serve until the block ends; yields the port. Port 0 picks a free one."""

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        ready, why = health.ready
        if ready and not await ping():
            ready, why = False, "the queue server does not answer"
        return web.Response(status=200 if ready else 503, text=why + "\n")

    app = web.Application()
    app.add_routes(
        [web.get("/metrics", show_metrics), web.get("/healthz", healthz),
         web.get("/readyz", readyz)]
    )  # fmt: skip
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port} for metrics: {error.strerror or error}. "
                "Set FLEET_METRICS_PORT to a free port, or 0 to have one picked."
            ) from None
        bound = runner.addresses[0][1]
        log.info("serve.listening", host=host, port=bound)
        yield bound
    finally:
        await runner.cleanup()
