"""What a sandbox is asked to be: limits, network, files, environment, packages, image."""

from __future__ import annotations

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from common.model import Contract

_HOST = re.compile(
    r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
)


class Limits(Contract):
    """What one sandbox may use. Every one is enforced, or `probe` says that it is not."""

    wall: float = Field(default=30.0, gt=0)
    """Seconds for one `exec` without a timeout of its own."""
    ttl: float = Field(default=600.0, gt=0)
    """Seconds the whole sandbox may live; it is killed afterwards whatever happens."""
    cpu: float = Field(default=300.0, gt=0)
    """Seconds of processor time for each process."""
    memory_mb: int = Field(default=512, ge=16)
    """Of all its processes together; where a cgroup counts, files in /work and /tmp included."""
    pids: int = Field(default=64, ge=4)
    disk_mb: int = Field(default=64, ge=1)
    """Of the work folder; /tmp has as much again."""
    inodes: int = Field(default=4096, ge=16)
    file_mb: int = Field(default=64, ge=1)
    """The largest single file."""
    open_files: int = Field(default=256, ge=32)
    """Of each process; the agent itself needs some twenty."""
    output_bytes: int = Field(default=1 << 20, ge=1024)
    """Of stdout, and of stderr, for one `exec`; the program is stopped when it writes more."""
    read_bytes: int = Field(default=10 << 20, ge=1024)
    """The largest file `read_file` returns."""


class NetworkPolicy(Contract):
    """What programs may reach."""

    mode: Literal["none", "loopback", "allowlist"] = "none"
    """`none`: nothing outside of the sandbox. `loopback`: the same, and 127.0.0.1 inside works for
    sure. `allowlist`: `hosts`, and nothing else."""
    hosts: tuple[str, ...] = ()
    """Names as in `a.example.org` or `*.example.org`; only with `allowlist`."""

    @field_validator("hosts")
    @classmethod
    def _names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is no host name (lower case, no port, no path)")
        return value

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if (self.mode == "allowlist") != bool(self.hosts):
            raise ValueError("hosts belong to the mode allowlist, which needs at least one")
        return self


class SandboxSpec(Contract):
    """One sandbox to start."""

    limits: Limits = Limits()
    network: NetworkPolicy = NetworkPolicy()
    image: str | None = None
    """Of back-ends that run images; None: the back-end's own."""
    packages: tuple[str, ...] = ()
    """Python packages programs can import, of those prepared on this host (python_packages.py)."""
    files: dict[str, bytes] = Field(default_factory=dict)
    """Put into the sandbox before anybody gets it: path in the work folder to content."""
    env: dict[str, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    """Owner marks for people and the reaper: worker, task, attempt."""

    @field_validator("env")
    @classmethod
    def _settable(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            try:
                fit = bool(name) and "=" not in name and b"\0" not in (name + text).encode()
            except UnicodeEncodeError:
                fit = False
            if not fit:
                raise ValueError(f"environment variable {name!r} cannot be set to {text!r}")
        return value
