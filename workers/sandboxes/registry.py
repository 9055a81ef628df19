"""The sandbox back-ends by name; a new one is its module and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pydantic import JsonValue

from common.failures import ConfigurationError
from common.metrics import Metrics
from common.settings import Settings
from workers.sandboxes.nsjail.provider import NsjailProvider
from workers.sandboxes.pool import Pool
from workers.sandboxes.protocol import ProbeReport, SandboxProvider


def _nsjail(settings: Settings) -> SandboxProvider:
    return NsjailProvider(packages=settings.packages)


def _docker(settings: Settings) -> SandboxProvider:
    from workers.sandboxes.docker.provider import DockerProvider

    return DockerProvider(image=settings.docker_image, pull=settings.docker_pull)


def _opensandbox(settings: Settings) -> SandboxProvider:
    if settings.opensandbox_domain is None:
        raise ConfigurationError(
            "the opensandbox back-end needs FLEET_OPENSANDBOX_DOMAIN, the host:port of its server"
        )
    from workers.sandboxes import opensandbox
    from workers.sandboxes.opensandbox.settings import OpenSandboxSettings

    return opensandbox.make(
        OpenSandboxSettings(
            domain=settings.opensandbox_domain,
            protocol=settings.opensandbox_protocol,
            api_key=settings.opensandbox_api_key,
            image=settings.opensandbox_image,
            use_server_proxy=settings.opensandbox_proxy,
            network=settings.opensandbox_network,
            create_timeout=settings.opensandbox_create_timeout,
            cpus=settings.opensandbox_cpus,
        )
    )


BACKENDS: dict[str, Callable[[Settings], SandboxProvider]] = {
    "nsjail": _nsjail,
    "docker": _docker,
    "opensandbox": _opensandbox,
}
"""Imported only when they are chosen: an extra may be missing."""


def backend(settings: Settings) -> SandboxProvider:
    """Return the configured back-end. Raises `ConfigurationError` for a name nobody knows."""
    try:
        make = BACKENDS[settings.sandbox]
    except KeyError:
        known = ", ".join(sorted(BACKENDS))
        raise ConfigurationError(
            f"no sandbox back-end {settings.sandbox!r}; there are: {known}"
        ) from None
    return make(settings)


def pooled(settings: Settings, metrics: Metrics) -> SandboxProvider:
    """Return the configured back-end with some sandboxes kept ready, as episodes use it."""
    made = backend(settings)
    if not settings.sandbox_pool:
        return made
    return Pool(made, settings.sandbox_pool, metrics.sandboxes_idle.labels(made.backend).set)


def held(enforced: Mapping[str, JsonValue], broken: Sequence[str]) -> dict[str, JsonValue]:
    """Return each promise and how it is kept, or that it is not."""
    told = dict(enforced)
    for promise in broken:
        key = promise.partition(":")[0]
        if key in told:
            told[key] = f"NOT HELD{promise.removeprefix(key)}"
    return told


def admit(report: ProbeReport, *, allow_unsafe: bool) -> tuple[str, ...] | None:
    """Return what every trajectory has to say about broken promises.

    None: all hold, or nobody asked. Raises `ConfigurationError` where one is broken, unless the
    operator said that it may be.
    """
    if report.broken and not allow_unsafe:
        advice = f"; {report.advice}" if report.advice else ""
        raise ConfigurationError(
            f"the {report.backend} sandboxes do not hold what they promise: "
            f"{'; '.join(report.broken)}{advice}. (--allow-unsafe works all the same, and every "
            "trajectory then says so.)"
        )
    return report.broken if allow_unsafe else None
