"""The image a container is made of: which one exactly, and whether it will do."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from common.failures import ConfigurationError
from common.model import Contract
from workers.sandboxes.docker.client import Docker
from workers.sandboxes.protocol import SandboxStartError, SandboxUnsupported

Pull = Literal["never", "missing"]

PULL_PATIENCE = 900.0
"""Seconds for fetching an image; gigabytes on a slow line."""
# A reference never starts with a dash, and so is no option of the docker command.
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
_NOT_FOR_US = ("not found", "manifest unknown", "pull access denied", "invalid reference")


class Image(Contract):
    """One image of this daemon."""

    reference: str
    """As it was asked for."""
    id: str
    """What containers are started from: a tag may be moved meanwhile, this cannot."""
    digest: str
    """As its registry knows it; the id where it was made here."""
    env: dict[str, str]


async def find(docker: Docker, reference: str, pull: Pull) -> Image:
    """Return an image, fetched if that is allowed.

    Raises `SandboxUnsupported` naming one that is missing or will not do, `SandboxStartError` when
    it could not be fetched, and what `Docker.run` raises.
    """
    if not _REFERENCE.fullmatch(reference):
        raise SandboxUnsupported(f"{reference!r} is no name of an image")
    found = await _inspect(docker, reference)
    if found is None and pull == "missing":
        await _fetch(docker, reference)
        found = await _inspect(docker, reference)
    if found is None:
        raise SandboxUnsupported(
            f"the image {reference} is not on this Docker host: docker pull {reference}"
        )
    config = found.get("Config") or {}
    if config.get("Volumes"):
        # Docker would make each a folder on the host's disk, writable and without any limit.
        raise SandboxUnsupported(
            f"the image {reference} declares volumes ({', '.join(config['Volumes'])}), which no "
            "limit would hold for: build it without VOLUME"
        )
    return Image(
        reference=reference,
        id=found["Id"],
        digest=next(iter(found.get("RepoDigests") or ()), found["Id"]),
        env=dict(line.partition("=")[::2] for line in config.get("Env") or ()),
    )


async def _inspect(docker: Docker, reference: str) -> dict[str, Any] | None:
    try:
        text = await docker.run("image", "inspect", "--format", "{{json .}}", reference)
    except SandboxStartError as error:
        if "no such image" in str(error).lower():
            return None
        raise
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("Id"), str):
        raise ConfigurationError(f"docker image inspect said what no Docker says: {text[:200]!r}")
    return found


async def _fetch(docker: Docker, reference: str) -> None:
    try:
        await docker.run("pull", "--quiet", reference, patience=PULL_PATIENCE)
    except SandboxStartError as error:
        if any(words in str(error).lower() for words in _NOT_FOR_US):
            raise SandboxUnsupported(f"the image {reference} cannot be had: {error}") from None
        raise SandboxStartError(f"the image {reference} could not be fetched: {error}") from None
