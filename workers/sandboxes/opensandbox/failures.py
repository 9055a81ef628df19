"""What the SDK raises, told as what it means for the fleet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opensandbox.exceptions import (
    SandboxApiException,
    SandboxConnectionException,
    SandboxException,
    SandboxRateLimitException,
    SandboxReadyTimeoutException,
    SandboxTimeoutException,
)

from common.failures import ConfigurationError
from workers.sandboxes.protocol import (
    SandboxError,
    SandboxLost,
    SandboxQuota,
    SandboxStartError,
    SandboxUnavailable,
)

OLDEST_SERVER = "0.1.9"
"""Older ones send explicit nulls, which no version of the SDK can read (their issue 549)."""
LONGEST_MESSAGE = 500
POLICY_WORDS = ("networkpolicy", "egress")


def meaning(
    error: SandboxException, server: str, doing: str, nulls: list[str]
) -> SandboxError | ConfigurationError:
    """Return our error for one of the SDK's, from a call that is about a whole sandbox."""
    said = _said(error)
    if isinstance(error, SandboxRateLimitException):
        after = error.retry_after.total_seconds() if error.retry_after is not None else None
        return SandboxQuota(f"{doing}: {server} has no more to give: {said}", retry_after=after)
    if isinstance(error, SandboxApiException):
        return _of_status(error, server, doing, said)
    if isinstance(error, SandboxReadyTimeoutException):
        return SandboxStartError(f"{doing}: it never answered: {said}")
    if isinstance(error, SandboxConnectionException | SandboxTimeoutException):
        return SandboxUnavailable(f"{doing}: {server} cannot be reached: {said}")
    if isinstance(error.__cause__, TypeError) and nulls:
        return ConfigurationError(
            f"{doing}: {server} answered null for {', '.join(nulls)}, as servers before "
            f"{OLDEST_SERVER} do and no OpenSandbox SDK can read: "
            f"opensandbox-server >= {OLDEST_SERVER} is needed"
        )
    return SandboxUnavailable(f"{doing}: {server} did not answer as expected: {said}")


def _of_status(
    error: SandboxApiException, server: str, doing: str, said: str
) -> SandboxError | ConfigurationError:
    status, code = error.status_code or 0, str(error.error.code or "")
    if status in (401, 403) and "QUOTA" not in code:
        return ConfigurationError(
            f"{doing}: {server} refuses the key ({code or status}): set FLEET_OPENSANDBOX_API_KEY "
            "to the server's api_key"
        )
    if "QUOTA" in code:
        return SandboxQuota(f"{doing}: {server} has no more to give: {said}")
    if status == 404:
        return SandboxLost(f"{doing}: {server} does not know it any more: {said}")
    if status == 400 and any(word in said.lower() for word in POLICY_WORDS):
        return ConfigurationError(
            f"{doing}: {server} cannot limit what sandboxes reach: {said}; set [egress].image and "
            "network_mode = bridge on the server, or FLEET_OPENSANDBOX_NETWORK=closed if its "
            "Docker network has no way out"
        )
    if status < 500:
        return ConfigurationError(f"{doing}: {server} refuses the request: {said}")
    if "IMAGE_PULL" in code or "START_FAILED" in code:
        return SandboxStartError(f"{doing}: {said}")
    return SandboxUnavailable(f"{doing}: {server} is in trouble: {said}")


def _said(error: SandboxException) -> str:
    message = str(error.args[0] if error.args else "") or type(error).__name__
    return message[:LONGEST_MESSAGE]


def nulls_in(answer: Any, where: str = "") -> Iterator[str]:
    """Yield the path of each explicit null in an answer of the server."""
    if isinstance(answer, dict):
        for key, value in answer.items():
            yield from nulls_in(value, f"{where}.{key}" if where else str(key))
    elif isinstance(answer, list):
        for index, value in enumerate(answer):
            yield from nulls_in(value, f"{where}[{index}]")
    elif answer is None:
        yield where
