"""The OpenSandbox back-end; its SDK is needed only by those who choose it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.failures import ConfigurationError

if TYPE_CHECKING:
    from workers.sandboxes.opensandbox.settings import OpenSandboxSettings
    from workers.sandboxes.protocol import SandboxProvider


def make(settings: OpenSandboxSettings) -> SandboxProvider:
    """Return the back-end. Raises `ConfigurationError` where its SDK is not installed."""
    try:
        from workers.sandboxes.opensandbox.provider import OpenSandboxProvider
    except ModuleNotFoundError as missing:
        raise ConfigurationError(
            f"the opensandbox back-end needs its SDK ({missing}): "
            "pip install 'trajectory-fleet[opensandbox]'"
        ) from None
    return OpenSandboxProvider(settings)
