"""Looks at everything the fleet stands on, and says how to mend what is wrong."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from common.failures import ConfigurationError, FleetError
from common.llm.client import connect
from common.llm.fetch import place
from common.llm.providers import choose
from common.llm.weights import QWEN_CODER
from common.queue.connection import Server, ServerGone
from common.queue.embedded import EmbeddedServer
from common.settings import Settings
from common.store import Store, StoreError
from workers.sandboxes.python_packages import PREPARE
from workers.sandboxes.registry import BACKENDS, backend, held

_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    state: Literal["ok", "warning", "broken", "not used"]
    detail: str


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything; nothing is changed. Each look has a deadline."""
    looks: list[tuple[str, Callable[[Settings], Awaitable[Finding]]]] = [
        ("python", _python),
        *(
            (f"sandbox {name}", partial(_sandbox, name=name))
            for name in dict.fromkeys((settings.sandbox, *BACKENDS))
        ),
        ("queue server", _server), ("model", _model),
        ("output", _output), ("disk", _disk), ("port", _port),
    ]  # fmt: skip
    found = []
    for what, look in looks:
        try:
            async with asyncio.timeout(60):
                found.append(await look(settings))
        except TimeoutError:
            found.append(Finding(what, "broken", "no answer within 60 s"))
        except (ConfigurationError, FleetError, StoreError, ServerGone, OSError) as error:
            found.append(Finding(what, "broken", str(error)))
    return found


async def _python(_: Settings) -> Finding:
    version = platform.python_version()
    if not sys.platform.startswith("linux"):
        return Finding("python", "broken", f"{version} on {sys.platform}; jails need Linux")
    return Finding("python", "ok", f"{version}, {os.cpu_count()} cores")


async def _sandbox(settings: Settings, name: str) -> Finding:
    """Look at one back-end: the configured one must be there, the others may."""
    what, chosen = f"sandbox {name}", name == settings.sandbox
    trouble: Literal["broken", "warning"] = "broken" if chosen else "warning"
    try:
        provider = backend(settings.model_copy(update={"sandbox": name}))
        try:
            report = await provider.probe()
        finally:
            await provider.close()
    except (ConfigurationError, FleetError, OSError) as error:
        return Finding(what, "broken" if chosen else "not used", str(error))
    kept = ", ".join(
        f"{promise}: {how}" for promise, how in held(report.enforced, report.broken).items()
    )
    if "packages" in provider.capabilities:
        names = (
            [f"{n} {one.version}" for n, one in report.packages.packages.items()]
            if (report.packages)
            else [f"none (`{PREPARE}`)"]
        )
        kept += f"; Python packages: {', '.join(names)}"
    if report.broken:
        unnamed = [
            promise for promise in report.broken if promise.partition(":")[0] not in report.enforced
        ]
        detail = "; ".join((*unnamed, kept, report.advice))
        return Finding(what, trouble, detail)
    return Finding(what, "ok", f"tried in a real one; {kept}")


async def _server(settings: Settings) -> Finding:
    if settings.redis_url is None:
        with tempfile.TemporaryDirectory() as folder:
            embedded = EmbeddedServer(Path(folder))
            embedded.start()
            server = Server(embedded.url, patience=5)
            try:
                version = await server.check()
            finally:
                await server.close()
                await asyncio.to_thread(embedded.stop)
        return Finding("queue server", "ok", f"{version} from the wheel; `fleet up` starts it")
    server = Server(settings.redis_url, patience=5)
    try:
        version = await server.check()
        if server.doubts:
            return Finding("queue server", "warning", f"{version}; {'; '.join(server.doubts)}")
        return Finding("queue server", "ok", f"{version}, durable, never evicts")
    finally:
        await server.close()


async def _model(settings: Settings) -> Finding:
    chosen = choose(settings)[0]
    if chosen.name == "embedded" and chosen.base_url is None:
        path = settings.model_file or place(settings.cache, QWEN_CODER)
        if path.exists():
            return Finding("model", "ok", f"embedded, weights at {path} (small: demonstration)")
        return Finding(
            "model", "warning",
            "no provider configured; `fleet up` will fetch the embedded model's weights once "
            "(about 0.5 GB). For real work set a provider's key: see .env.example",
        )  # fmt: skip
    models = connect(settings)
    try:
        return Finding("model", "ok", await models[0].check())
    finally:
        for model in models:
            await model.close()


async def _output(settings: Settings) -> Finding:
    store = Store(settings.output)
    await asyncio.to_thread(store.prove_writable)
    return Finding("output", "ok", f"{settings.output.resolve()} can be written")


async def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.output.resolve()).free
    detail = f"{free / _GIB:.1f} GiB free at {settings.output.resolve()}"
    if free < _GIB:
        return Finding("disk", "warning", f"{detail}; trajectories stop when it is full")
    return Finding("disk", "ok", detail)


async def _port(settings: Settings) -> Finding:
    if settings.metrics_port == 0:
        return Finding("port", "ok", "metrics on free ports (FLEET_METRICS_PORT=0)")
    with socket.socket() as probe:
        try:
            probe.bind((settings.metrics_host, settings.metrics_port))
        except OSError as error:
            return Finding(
                "port", "broken",
                f"{settings.metrics_host}:{settings.metrics_port}: {error.strerror}; set "
                "FLEET_METRICS_PORT to a free one, or 0",
            )  # fmt: skip
    return Finding("port", "ok", f"{settings.metrics_port} is free")
