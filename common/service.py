"""What every long-running process does around its own work: logs, signals, server, port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import uvloop

from common import logs
from common.failures import ConfigurationError
from common.metrics import Metrics
from common.presence import Presence
from common.process import calm_collector, consumer_name, die_with_parent, drain_on_signal, until
from common.queue.connection import Server, ServerGone
from common.serve import Health, serving
from common.settings import Settings, load

EXIT_CONFIGURATION = 78
"""EX_CONFIG of sysexits.h: starting again will not help, a person must change something."""


EXIT_SERVER_GONE = 75
"""EX_TEMPFAIL: told to end while the queue server was away."""
_LAST_PATIENCE = 5.0
"""Seconds a draining process waits for an absent server; until then it waits for ever."""
AFTER_THE_REST = 30.0
"""Seconds beyond the grace period of workers after which a drain leaves what is not reviewed."""


@dataclass(frozen=True)
class Service:
    """What a process hands to its own work."""

    settings: Settings
    server: Server
    metrics: Metrics
    health: Health
    draining: asyncio.Event
    consumer: str


def run(
    name: str,
    work: Callable[[Service], Awaitable[None]],
    *,
    last: Callable[[Server], Awaitable[bool]] | None = None,
    **overrides: Any,
) -> int:
    """Run ``work`` as the service ``name``; returns the exit code.

    SIGTERM and SIGINT set `Service.draining`, and so does `fleet drain`: but for a service that
    the others need only when ``last`` holds, or half a minute after their grace period. A
    `ConfigurationError`, and nothing else that is expected, ends the process with a non-zero code
    and one sentence.
    """
    wrong: list[BaseException] = []
    gone = ""
    logs.configure("INFO", service=name)  # what is wrong with the settings must be said too
    try:
        settings = load(**overrides)
        logs.configure(settings.log_level, service=name)
        die_with_parent(settings.parent_pid)
        if settings.redis_url is None:
            raise ConfigurationError(
                "FLEET_REDIS_URL is not set; start everything at once with `fleet up`, "
                "or name a Valkey or Redis server: FLEET_REDIS_URL=redis://127.0.0.1:6379/0"
            )
        uvloop.run(_run(name, work, settings, last))
    except* ConfigurationError as group:
        wrong = _leaves(group)
    except* ServerGone as group:
        gone = str(_leaves(group)[0])
    for error in wrong:
        logs.logger(name).error(f"{name}.misconfigured", error=str(error))
    if gone and not wrong:
        # What it held lapses within a lease, and others take it over.
        logs.logger(name).error(f"{name}.ended_without_server", error=gone)
        return EXIT_SERVER_GONE
    return EXIT_CONFIGURATION if wrong else 0


async def _run(
    name: str,
    work: Callable[[Service], Awaitable[None]],
    settings: Settings,
    last: Callable[[Server], Awaitable[bool]] | None,
) -> None:
    draining = asyncio.Event()
    drain_on_signal(draining)
    assert settings.redis_url is not None
    server = Server(settings.redis_url)
    consumer = consumer_name()
    logs.configure(settings.log_level, service=name, worker_id=consumer)
    metrics, health = Metrics(), Health()

    async def lose_patience() -> None:
        await draining.wait()
        server.patience = _LAST_PATIENCE

    losing = asyncio.create_task(lose_patience())
    try:
        async with serving(
            metrics, health, host=settings.metrics_host, port=settings.metrics_port,
            ping=server.answers,
        ):  # fmt: skip
            await until(draining, server.check())
            if not draining.is_set():
                logs.logger(name).info(f"{name}.started")
                calm_collector()
                async with Presence(
                    server, name, consumer, draining,
                    last=last, patience=settings.drain_grace + AFTER_THE_REST,
                ):  # fmt: skip
                    await work(Service(settings, server, metrics, health, draining, consumer))
            logs.logger(name).info(f"{name}.stopped")
    finally:
        losing.cancel()
        await server.close()


def _leaves(group: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
