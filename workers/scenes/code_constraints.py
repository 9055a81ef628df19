"""What a code task may ask of its sandbox."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from common.model import Contract, explain
from workers.sandboxes.spec import NetworkPolicy


class CodeConstraints(Contract):
    """`constraints` of a code task."""

    files: dict[str, str] = Field(default_factory=dict)
    """Put into the work folder before the agent starts: relative path to text."""
    language: Literal["python", "bash", "shell"] | None = None
    """What the program is to be written in: that tool is shown first where nothing else says."""
    only_expected_tools: bool = False
    """Show the agent no other tools than `expected_tools` (and `finish`)."""
    python_packages: tuple[str, ...] = ()
    """What programs can import besides the standard library, of those prepared on the worker's
    host (`fleet packages list`)."""
    image: str | None = None
    """What the sandbox is made of, where the back-end runs images (docker, opensandbox)."""
    network: Literal["none", "loopback", "allowlist"] = "none"
    """`loopback`: programs can talk to each other on 127.0.0.1. `allowlist`: and reach `hosts`."""
    hosts: tuple[str, ...] = Field(default=(), validate_default=True)
    keep_background: bool = False
    """Let what the agent left running in the background live while checks look, for tasks whose
    result is a running program. It may also tamper with the checks."""
    memory_mb: int = Field(default=512, ge=64, le=8192)
    disk_mb: int = Field(default=64, ge=1, le=4096)
    pids: int = Field(default=64, ge=8, le=1024)

    @property
    def policy(self) -> NetworkPolicy:
        return NetworkPolicy(mode=self.network, hosts=self.hosts)

    @field_validator("hosts")
    @classmethod
    def _reachable(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        try:
            NetworkPolicy(mode=info.data.get("network", "none"), hosts=value)
        except ValidationError as error:
            raise ValueError("; ".join(reason for _, reason in explain(error))) from None
        return value

    @field_validator("files")
    @classmethod
    def _inside(cls, value: dict[str, str]) -> dict[str, str]:
        for path in value:
            if path.startswith("/") or ".." in path.split("/") or not path or "\0" in path:
                raise ValueError(f"{path!r} is not a relative path inside the work folder")
        return value
