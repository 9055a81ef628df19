"""The scenes this fleet can run: a name here and one module beside this file make one."""

from __future__ import annotations

from importlib import import_module

from common.failures import ConfigurationError
from common.metrics import Metrics
from common.settings import Settings
from workers.environment import Scene

SCENES = {
    "code": "workers.scenes.code",
}
"""Scene to the module whose `build(settings, metrics)` returns it; imported only when used."""


def build(name: str, settings: Settings, metrics: Metrics) -> Scene:
    """Return a scene. Raises `ConfigurationError` for one that is not here."""
    if name not in SCENES:
        raise ConfigurationError(
            f"no scene {name!r} in this release; there is: {', '.join(SCENES)}"
        )
    scene: Scene = import_module(SCENES[name]).build(settings, metrics)
    return scene
