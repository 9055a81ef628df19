"""Sandboxes in Docker containers: one `docker run` for each, with our agent as process 1.

The way of one sandbox: pin the image (images.py), mark whose it is (owners.py), write down what it
may not do (options.py, seccomp.json), start it (container.py) with a Python that waits for the
agent (boot.py), and hand that out as a sandbox (agent_sandbox.py).
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

from pydantic import JsonValue

from common.failures import ConfigurationError
from workers.sandboxes import agent, probe
from workers.sandboxes.agent_sandbox import ENV, AgentSandbox
from workers.sandboxes.channel import Channel
from workers.sandboxes.docker import images, options, owners
from workers.sandboxes.docker import probe as container_probe
from workers.sandboxes.docker.client import Docker
from workers.sandboxes.docker.container import Container
from workers.sandboxes.docker.images import Image, Pull
from workers.sandboxes.docker.removal import Removal, remove
from workers.sandboxes.protocol import (
    Capability,
    ProbeReport,
    SandboxError,
    SandboxLost,
    SandboxSpent,
    SandboxStartError,
    SandboxUnavailable,
    SandboxUnsupported,
    refusal,
)
from workers.sandboxes.spec import Limits, SandboxSpec

BACKEND = "docker"
IMAGE = "python:3.13-slim-trixie"
"""Where neither the task nor the operator names one."""
START_PATIENCE = 60.0
"""Seconds for the agent's first word. It takes some 0.5 on a quiet machine."""
REAP_PATIENCE = 10.0
"""Seconds for removing one container; a busy daemon takes some."""
AT_ONCE = 8
"""Removals under way; the daemon has other work to do."""


class DockerProvider:
    """Starts containers on the Docker daemon that the docker command talks to."""

    backend = BACKEND
    capabilities: frozenset[Capability] = frozenset({"background", "images"})

    def __init__(
        self, *, image: str | None = None, pull: Pull = "never", command: str = "docker"
    ) -> None:
        """Take the image of specs that name none, and whether missing ones may be fetched.

        Never, by default: an operator who fetches images also knows which they are.
        """
        owners.own(), owners.host()  # now, as later there may be no descriptor left to look
        self._docker = Docker(command)
        self._image = image or IMAGE
        self._pull = pull
        self._images: dict[str, Image] = {}
        # Shared with the containers: one set for good, changed in place.
        self._doubtful: set[str] = set()
        self._starting: set[Container] = set()
        self._live: set[AgentSandbox] = set()
        self._closed = 0
        """How often: a start that was under way meanwhile comes to nothing."""

    async def start(self, spec: SandboxSpec) -> AgentSandbox:
        """Start a container. Raises as the protocol says."""
        if reason := refusal(spec, self.capabilities):
            raise SandboxUnsupported(f"the docker back-end {reason}")
        closed = self._closed
        image = await self._find(spec.image or self._image)
        return await self._start(spec, image, options.environment(image), closed)

    async def probe(self) -> ProbeReport:
        """Start a container of the operator's image and look what holds in it."""
        closed, versions = self._closed, await self._versions()
        try:
            image = await self._find(self._image)
            # Without the image's own variables, so that any other one found inside is a leak.
            env = {**ENV, "PATH": options.environment(image)["PATH"]}
            spec = SandboxSpec(limits=probe.LIMITS)
            async with await self._start(spec, image, env, closed) as sandbox:
                broken = await container_probe.broken_promises(sandbox)
        except (SandboxStartError, SandboxUnsupported) as error:
            raise ConfigurationError(str(error)) from None
        return ProbeReport(
            backend=BACKEND, versions=versions, enforced=sandbox.enforced, broken=broken
        )

    async def reap(self) -> int:
        """Remove containers of dead owners. Raises `SandboxUnavailable` where none can be seen."""
        listing = await self._docker.run(
            "ps", "--all", "--no-trunc", "--filter", f"label={owners.HOST}",
            "--filter", f"name=^/?{owners.NAME}", "--format", owners.FORMAT,
        )  # fmt: skip
        orphans = [found.id for found in owners.parse(listing) if found.orphan()]
        turn = asyncio.Semaphore(AT_ONCE)

        async def removed(name: str) -> bool:
            async with turn:
                removal = await remove(self._docker, name, REAP_PATIENCE)
            if removal is not Removal.UNKNOWN:
                self._doubtful.discard(name)
            return removal is Removal.DONE

        return sum(await asyncio.gather(*map(removed, (*orphans, *self._doubtful))))

    async def close(self) -> None:
        self._closed += 1
        await asyncio.gather(
            *(container.end() for container in self._starting),
            *(sandbox.close() for sandbox in self._live),
        )

    async def _find(self, reference: str) -> Image:
        """Return an image; the same one for as long as this provider lives."""
        if reference not in self._images:
            self._images[reference] = await images.find(self._docker, reference, self._pull)
        return self._images[reference]

    async def _start(
        self, spec: SandboxSpec, image: Image, env: dict[str, str], closed: int
    ) -> AgentSandbox:
        """Start a container; ``closed`` is how often this provider had been when it was asked."""
        name = f"{owners.NAME}{uuid4().hex[:16]}"
        container = Container(self._docker, name, image, self._doubtful)
        channel = None
        self._starting.add(container)
        try:
            self._must_be_open(closed)
            labels = owners.marks(spec.limits.ttl, spec.labels)
            streams = await container.start(
                list(options.run(image, spec.limits, name, labels)), agent.source()
            )
            most = max(spec.limits.read_bytes, spec.limits.output_bytes)
            channel = Channel(*streams, max_raw=most)
            sandbox = await AgentSandbox.open(
                BACKEND, spec, container, channel, promises(spec.limits, image),
                self._live.discard, env=env, patience=START_PATIENCE,
            )  # fmt: skip
            if self._closed != closed:
                await sandbox.close()
            self._must_be_open(closed)
        except SandboxLost as error:
            reason: SandboxError | ConfigurationError
            try:
                reason = await self._why_not(error, container, image)
                self._must_be_open(closed)
            finally:
                await asyncio.shield(self._undo(container, channel))
            raise reason from None
        except BaseException as error:
            await asyncio.shield(self._undo(container, channel))
            if isinstance(error, OSError):  # without descriptors, not even our own files open
                raise SandboxUnavailable(f"no sandbox could be started: {error}") from None
            raise
        self._starting.discard(container)
        self._live.add(sandbox)
        return sandbox

    def _must_be_open(self, closed: int) -> None:
        if self._closed != closed:
            raise SandboxUnavailable("the docker back-end was closed meanwhile")

    async def _why_not(
        self, error: SandboxLost, container: Container, image: Image
    ) -> SandboxError | ConfigurationError:
        """Return why there is no sandbox, in words for whoever asked for one."""
        if isinstance(error, SandboxSpent):
            return SandboxUnsupported(
                f"the files of the spec do not fit into the sandbox's memory: {error}"
            )
        self._images.pop(image.reference, None)  # it may have been removed meanwhile
        return await container.why_not_started()

    async def _undo(self, container: Container, channel: Channel | None) -> None:
        await container.end()
        if channel:
            await channel.close()
        self._starting.discard(container)

    async def _versions(self) -> dict[str, str]:
        """Return what is known of the daemon. Raises `SandboxUnavailable` where there is none."""
        version = await self._ask("version")
        info = await self._ask("info")
        server = version.get("Server") or {}
        security = [str(option) for option in info.get("SecurityOptions") or ()]
        return {
            "docker": str(server.get("Version")),
            "docker command": str((version.get("Client") or {}).get("Version")),
            "kernel": str(server.get("KernelVersion")),
            "cgroup": f"v{info.get('CgroupVersion', '?')} by {info.get('CgroupDriver', '?')}",
            "storage": str(info.get("Driver")),
            "rootless": "yes" if any("name=rootless" in option for option in security) else "no",
        }

    async def _ask(self, command: str) -> dict[str, Any]:
        text = await self._docker.run(command, "--format", "{{json .}}")
        try:
            told: dict[str, Any] = json.loads(text)
        except ValueError:
            raise ConfigurationError(f"docker {command} said no JSON: {text[:200]!r}") from None
        return told


def promises(limits: Limits, image: Image) -> dict[str, JsonValue]:
    """Return each promise of a container and how it is kept."""
    return {
        "memory": f"cgroup: {limits.memory_mb} MiB together",
        "pids": f"cgroup: {limits.pids} together",
        "disk": f"tmpfs: {limits.disk_mb} MiB, {limits.inodes} inodes in /work, the same in /tmp",
        "file": f"rlimit: {limits.file_mb} MiB",
        "open_files": f"rlimit: {limits.open_files} each",
        "cpu": f"rlimit: {limits.cpu:g} s each",
        "output": f"agent: {limits.output_bytes} bytes",
        "wall": f"agent: {limits.wall:g} s",
        "network": "namespace: own loopback only",
        "user": f"{options.INSIDE_ID} inside, as mapped by the daemon",
        "processes": "namespace",
        "files": "namespace: read-only image, no host files",
        "privileges": "no capabilities, no_new_privs, seccomp allow list",
        "image": image.digest,
    }
