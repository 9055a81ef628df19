"""Sandboxes on an OpenSandbox server: containers or pods that somebody else starts for us.

The way of one sandbox: label it (labels.py), let the server start it (server.py), renew its life
(lease.py), put our programs into it and make its user (guest.py, inside.py), send requests to the
agent (steps.py), and hand that out as a sandbox (agent_sandbox.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Mapping
from importlib.metadata import version
from typing import Any
from uuid import uuid4

from opensandbox import Sandbox
from opensandbox.models.sandboxes import NetworkPolicy, NetworkRule

from common.failures import ConfigurationError
from common.logs import logger
from workers.sandboxes.agent_sandbox import AgentSandbox
from workers.sandboxes.opensandbox import guest, labels, probe
from workers.sandboxes.opensandbox.failures import OLDEST_SERVER
from workers.sandboxes.opensandbox.lease import TTL, Lease, kill
from workers.sandboxes.opensandbox.server import Seen, Server
from workers.sandboxes.opensandbox.settings import OpenSandboxSettings
from workers.sandboxes.opensandbox.steps import Steps
from workers.sandboxes.protocol import (
    Capability,
    ProbeReport,
    SandboxError,
    SandboxLost,
    SandboxQuota,
    SandboxStartError,
    SandboxUnavailable,
    SandboxUnsupported,
    refusal,
)
from workers.sandboxes.spec import SandboxSpec

log = logger("opensandbox")

BACKEND = "opensandbox"
SETUP_PATIENCE = 30.0
"""Seconds for our first program inside. It takes some 0.1."""
CLOSE_PATIENCE = 30.0
"""Seconds to end all sandboxes, and to find what starts that were given up have left."""
ENDED = ("terminated", "stopping", "failed")
"""States, in small letters, of sandboxes that nobody needs to end."""


class OpenSandboxProvider:
    """Starts sandboxes on one server."""

    backend = BACKEND

    def __init__(self, settings: OpenSandboxSettings) -> None:
        self.capabilities: frozenset[Capability] = frozenset({"background", "images"})
        if settings.network == "policy":
            self.capabilities |= {"allowlist"}
        self._settings = settings
        self._server = Server(settings)
        self._users = guest.numbers()
        self._version: str | None = None
        self._live: set[AgentSandbox] = set()
        self._leftovers: set[asyncio.Task[None]] = set()
        self._starting: set[asyncio.Future[None]] = set()
        self._closed = False

    async def start(self, spec: SandboxSpec) -> AgentSandbox:
        """Start a sandbox. Raises as the protocol says; when this provider ends, too."""
        over = asyncio.get_running_loop().create_future()
        self._starting.add(over)
        try:
            sandbox = await self._start(spec)
            if self._closed:
                await sandbox.close()
                raise SandboxUnavailable("no more sandboxes: this worker ends")
            return sandbox
        finally:
            self._starting.discard(over)
            over.set_result(None)

    async def _start(self, spec: SandboxSpec) -> AgentSandbox:
        if reason := refusal(spec, self.capabilities):
            raise SandboxUnsupported(f"the opensandbox back-end {reason}")
        if spec.image == "":
            raise SandboxUnsupported("the image it names has no name")
        await self._check_version()
        image = spec.image or self._settings.image
        box = await self._create(image, spec)
        lease = Lease(self._server, box.id)
        try:
            async with asyncio.timeout(SETUP_PATIENCE):
                found = await guest.move_in(
                    box, image, spec.limits, next(self._users),
                    chosen_by_task=spec.image is not None,
                )  # fmt: skip
            line = Steps(
                box,
                found.folder,
                guest.less(found, spec.limits),
                max_raw=max(spec.limits.read_bytes, spec.limits.output_bytes),
            )
            lease.tell(line.fail, line.ran_out_of_memory)
            sandbox = await AgentSandbox.open(
                BACKEND, spec, lease, line, guest.promises(found, spec, self._settings),
                self._live.discard, patience=SETUP_PATIENCE,
            )  # fmt: skip
        except BaseException as error:
            end = self._keep(lease.end(), f"undo {box.id}")
            if not isinstance(error, Exception):
                raise
            await end
            if isinstance(error, TimeoutError | SandboxLost):
                raise SandboxStartError(
                    f"a sandbox of {image} started but is no use: {error or 'it does not answer'}"
                ) from None
            raise
        self._live.add(sandbox)
        return sandbox

    async def probe(self) -> ProbeReport:
        try:
            async with await self.start(SandboxSpec(limits=probe.LIMITS)) as sandbox:
                async with await self.start(SandboxSpec(limits=probe.LIMITS)) as neighbour:
                    server = await self._server.addresses()
                    broken = await probe.broken_promises(sandbox, neighbour, server)
                enforced = sandbox.enforced
        except (SandboxStartError, SandboxLost) as error:
            raise ConfigurationError(f"no sandbox starts on {self._server.name}: {error}") from None
        return ProbeReport(
            backend=BACKEND,
            versions={
                "opensandbox": version("opensandbox"),
                "opensandbox-server": str(self._version),
                "image": self._settings.image,
            },
            enforced=enforced,
            broken=broken,
            advice=probe.ADVICE if broken else "",
        )

    async def reap(self) -> int:
        orphans = [
            info.id
            async for info in self._server.find(labels.OURS)
            if info.status.state.lower() not in ENDED
            and labels.orphaned(info.metadata or {}, info.expires_at, self._server.now())
        ]
        return sum(await asyncio.gather(*(kill(self._server, orphan) for orphan in orphans)))

    async def close(self) -> None:
        self._closed = True
        if self._starting:
            await asyncio.wait(self._starting, timeout=CLOSE_PATIENCE)
        await asyncio.gather(*(sandbox.close() for sandbox in self._live))
        if self._leftovers:
            _, late = await asyncio.wait(self._leftovers, timeout=CLOSE_PATIENCE)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)
        await self._server.close()

    async def _check_version(self) -> None:
        """Refuse servers whose answers no SDK can read, as far as they tell."""
        if self._version is None:
            said = await self._server.version()
            if (numbers := _numbers(said)) and numbers < _numbers(OLDEST_SERVER):
                raise ConfigurationError(
                    f"{self._server.name} is version {said}; {OLDEST_SERVER} or newer is needed"
                )
            self._version = said

    async def _create(self, image: str, spec: SandboxSpec) -> Sandbox:
        """Let the server start a sandbox. When that fails, or is given up, none is left there."""
        seen, mark = Seen(), {labels.START: uuid4().hex}
        creating = asyncio.create_task(
            self._server.create(
                image,
                ttl=TTL,
                metadata={**labels.of_task(spec.labels), **labels.of_this_process(), **mark},
                memory_mb=spec.limits.memory_mb + guest.OVERHEAD_MB,
                policy=_policy(spec) if self._settings.network == "policy" else None,
                seen=seen,
                chosen_by_task=spec.image is not None or bool(spec.network.hosts),
            ),
            name=f"start {image}",
        )
        try:
            # Not cancelled with the caller: the server would go on, and tell nobody what it made.
            return await asyncio.shield(creating)
        except BaseException as error:
            swept = self._keep(self._sweep(creating, seen, mark), f"sweep {image}")
            if isinstance(error, Exception):
                await swept
            raise

    async def _sweep(
        self, creating: asyncio.Task[Sandbox], seen: Seen, mark: Mapping[str, str]
    ) -> None:
        """End what a start has left, once it is over."""
        try:
            await asyncio.wait([creating])
        except asyncio.CancelledError:  # this provider closes; what follows takes seconds
            creating.cancel()
            await asyncio.wait([creating])
        error = None if creating.cancelled() else creating.exception()
        if seen.created is not None:
            await kill(self._server, seen.created)
        elif not isinstance(error, ConfigurationError | SandboxQuota | SandboxUnsupported):
            try:
                for lost in [info.id async for info in self._server.find(mark)]:
                    await kill(self._server, lost)
            except (SandboxError, ConfigurationError) as trouble:
                log.warning("sandbox.left_to_its_ttl", error=str(trouble))

    def _keep(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Do something to its end, whatever becomes of the caller."""
        task = asyncio.create_task(work, name=name)
        self._leftovers.add(task)
        task.add_done_callback(self._leftovers.discard)
        return task


def _policy(spec: SandboxSpec) -> NetworkPolicy:
    rules = [NetworkRule(action="allow", target=host) for host in spec.network.hosts]
    return NetworkPolicy(defaultAction="deny", egress=rules)


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of a version, which may look like v1.2.3rc4."""
    found = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part or 0) for part in found.groups()) if found else ()
