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
_ID = re.compile(r"(sha256:)?[0-9a-f]{64}")
LONGEST_NAME = 255
"""Characters before tag and digest; Docker takes no more."""
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
    name, _ = _split(reference)
    if not _REFERENCE.fullmatch(reference) or len(name) > LONGEST_NAME:
        raise SandboxUnsupported(f"{reference!r} is no name of an image")
    found = await _inspect(docker, reference)
    if found is None and pull == "missing" and not _ID.fullmatch(reference):
        await _fetch(docker, reference)
        found = await _inspect(docker, reference)
    if found is None:
        raise SandboxUnsupported(
            f"the image {reference} is not on this Docker host: docker pull {reference}"
        )
    if not _meant(reference, found):
        raise SandboxUnsupported(
            f"{reference!r} is no name of an image; Docker takes it for the beginning of an id, "
            f"{found['Id']}: give a name, or the whole id"
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


def _meant(reference: str, found: dict[str, Any]) -> bool:
    """Say whether an image is what was asked for, not one whose id happens to begin so."""
    if "@" in reference or _ID.fullmatch(reference):
        return True  # exact by themselves
    return _whole(reference) in {_whole(tag) for tag in found.get("RepoTags") or ()}


def _split(reference: str) -> tuple[str, str]:
    """Return the name of a reference, and its tag as far as it has one."""
    name, _, _ = reference.partition("@")
    folder, slash, last = name.rpartition("/")
    last, _, tag = last.partition(":")
    return f"{folder}{slash}{last}", tag


def _whole(reference: str) -> str:
    """Return a reference with all that Docker adds to it: registry, folder and tag."""
    name, tag = _split(reference)
    host, slash, rest = name.partition("/")
    if not slash or not (set(".:") & set(host) or host == "localhost"):
        host, rest = "docker.io", name
    host = host.removeprefix("index.") if host == "index.docker.io" else host
    if host == "docker.io" and "/" not in rest:
        rest = f"library/{rest}"
    return f"{host}/{rest}:{tag or 'latest'}"


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
