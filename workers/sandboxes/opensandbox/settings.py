"""Where the OpenSandbox server is, and what is asked of it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, SecretStr

from common.model import Contract


class OpenSandboxSettings(Contract):
    """One OpenSandbox server and how to use it."""

    domain: str = Field(min_length=1, pattern=r"^[^\s/]+$")
    """Host and port of the server, e.g. `sandboxes.example.org:8080`."""
    protocol: Literal["http", "https"] = "http"
    api_key: SecretStr | None = None
    """What the server's `api_key` says; null where it has none."""
    image: str = Field(default="python:3.13-slim-trixie", min_length=1)
    """For tasks that name none. It needs Python 3.9 or newer as `python3`."""
    use_server_proxy: bool = False
    """Whether to reach sandboxes through the server, where they cannot be reached directly."""
    create_timeout: float = Field(default=120.0, gt=0)
    """Seconds for one sandbox to be there and answer; a first start also pulls its image."""
    network: Literal["policy", "closed"] = "policy"
    """How programs are kept off the network. `policy`: by the server's egress sidecar. `closed`:
    the server's own network has no way out, which a probe verifies from inside."""
    cpus: float = Field(default=1.0, gt=0)
    """Processors one sandbox may use at once."""
