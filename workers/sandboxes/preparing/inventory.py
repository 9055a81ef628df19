"""Looks through installed distributions: what each offers, and what it needs of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common.failures import ConfigurationError
from workers.sandboxes.preparing.lockfile import Pin
from workers.sandboxes.python_packages import Package


def take(folder: Path, pins: Iterable[Pin], environment: dict[str, str]) -> dict[str, Package]:
    """Return the packages in a folder, by name.

    Raises `ConfigurationError` for a package that needs something the list has not.
    """
    pins = list(pins)
    found = {pin.name: _distribution(folder / pin.name, pin) for pin in pins}
    needs = _needs(found, {pin.name: set(pin.extras) for pin in pins}, environment)
    return {
        pin.name: Package(
            version=pin.version,
            requires=tuple(sorted(needs[pin.name])),
            modules=tuple(sorted(set(_modules(folder / pin.name)))),
            scripts=tuple(sorted(file.name for file in (folder / pin.name / "bin").glob("*"))),
        )
        for pin in pins
    }


def _distribution(folder: Path, pin: Pin) -> Distribution:
    for distribution in distributions(path=[str(folder)]):
        if canonicalize_name(distribution.metadata["Name"]) == pin.name:
            return distribution
    raise ConfigurationError(f"{folder} holds no {pin.name}: remove it and prepare again")


def _needs(
    found: dict[str, Distribution], extras: dict[str, set[str]], environment: dict[str, str]
) -> dict[str, set[str]]:
    """Return name → names of those it needs, with the extras that somebody here asks for."""
    while True:
        needs: dict[str, set[str]] = {name: set() for name in found}
        wanted = {name: set(some) for name, some in extras.items()}
        for name, distribution in found.items():
            for requirement in _requirements(distribution, extras[name], environment):
                other = canonicalize_name(requirement.name)
                if other not in found:
                    raise ConfigurationError(f"{name} needs {requirement}, which is not listed")
                if not requirement.specifier.contains(found[other].version, prereleases=True):
                    raise ConfigurationError(
                        f"{name} needs {requirement}, but {found[other].version} is listed"
                    )
                needs[name].add(other)
                wanted[other] |= requirement.extras
        if wanted == extras:
            return needs
        extras = wanted


def _requirements(
    distribution: Distribution, extras: set[str], environment: dict[str, str]
) -> Iterator[Requirement]:
    for line in distribution.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(
            requirement.marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras)
        ):
            yield requirement


def _modules(folder: Path) -> Iterator[str]:
    """Yield what can be imported, by the names of files and folders; nothing is run."""
    for path in folder.iterdir():
        name = path.name.partition(".")[0]
        code = path.suffix in (".py", ".so") if path.is_file() else _holds_code(path)
        if code and name.isidentifier() and not name.startswith("_") and name != "bin":
            yield name


def _holds_code(folder: Path) -> bool:
    return folder.name.isidentifier() and any(
        path.suffix in (".py", ".so") for path in folder.rglob("*")
    )
