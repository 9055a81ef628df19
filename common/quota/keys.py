"""The names of what limits and budgets keep in Redis; all of it in one Cluster slot."""

from __future__ import annotations

import hashlib

PREFIX = "fleet:{quota}:"
RUN = "run"
"""The scope of everything: all scenes, all providers."""


def provider_id(name: str, base_url: str, key: str) -> str:
    """Return the short name of one key at one provider; the key cannot be had back from it."""
    return hashlib.sha256("\0".join((name, base_url, key)).encode()).hexdigest()[:12]


def scope_of(scene: str | None) -> str:
    return f"scene:{scene}" if scene else RUN


def inbox(process: str) -> str:
    return f"{PREFIX}in:{process}"
