"""What the SDK raises, told as what it means for the fleet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
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
    SandboxUnsupported,
)

OLDEST_SERVER = "0.1.9"
"""Older ones send explicit nulls, which no version of the SDK can read (their issue 549)."""
LONGEST_MESSAGE = 500
POLICY_WORDS = ("egress.image must", "networkpolicy is not supported", "not compatible")
"""In what a server says that takes no network policy of anybody's."""
IN_TROUBLE = (408, 409, 423, 425)
"""Answers that later may be others: busy, in between, or locked."""
GONE, WRONG = (404, 410), (400, 422)


@dataclass(frozen=True)
class Trouble:
    """What a failed call was about, as far as it decides whom its failure is told."""

    starting: bool = False
    chosen_by_task: bool = False
    """Whether what was asked for holds an image or hosts that the task names."""
    secret: str = ""
    """What a server may repeat, and nobody is to read."""

    def meaning(
        self,
        error: SandboxException,
        server: str,
        doing: str,
        *,
        nulls: list[str],
        created: str | None,
    ) -> SandboxError | ConfigurationError:
        """Return our error for one of the SDK's, from a call that is about a whole sandbox."""
        said = str(error.args[0] if error.args else "") or type(error).__name__
        if self.secret:
            said = said.replace(self.secret, "…")
        said = said[:LONGEST_MESSAGE]
        status = error.status_code if isinstance(error, SandboxApiException) else None
        if self.starting and status in GONE:
            if created is not None:
                return SandboxStartError(f"{doing}: it was gone before it answered: {said}")
            return ConfigurationError(
                f"{doing}: {server} has nothing there ({said}): is FLEET_OPENSANDBOX_DOMAIN the "
                "address of an OpenSandbox server?"
            )
        if status in WRONG and self.chosen_by_task and not _takes_no_policy(said):
            return SandboxUnsupported(f"{doing}: {server} refuses the request: {said}")
        return _meaning(error, server, doing, said, nulls)


def _meaning(
    error: SandboxException, server: str, doing: str, said: str, nulls: list[str]
) -> SandboxError | ConfigurationError:
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
    if status in GONE:
        return SandboxLost(f"{doing}: {server} does not know it any more: {said}")
    if status in IN_TROUBLE:
        return SandboxUnavailable(f"{doing}: {server} is in trouble: {said}")
    if status in WRONG and _takes_no_policy(said):
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


def _takes_no_policy(said: str) -> bool:
    return any(words in said.lower() for words in POLICY_WORDS)


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
