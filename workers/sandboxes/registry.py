"""The sandbox back-ends by name; a new one is its module and one line here."""

from __future__ import annotations

from collections.abc import Callable

from common.failures import ConfigurationError
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.protocol import SandboxProvider

PROVIDERS: dict[str, Callable[[], SandboxProvider]] = {"nsjail": NsjailProvider}


def provider(name: str) -> SandboxProvider:
    """Return a back-end. Raises `ConfigurationError` for a name nobody knows."""
    try:
        make = PROVIDERS[name]
    except KeyError:
        known = ", ".join(sorted(PROVIDERS))
        raise ConfigurationError(f"no sandbox back-end {name!r}; there are: {known}") from None
    return make()
