"""The Python packages prepared on this host: what tasks may ask for, and how programs reach it.

`fleet packages prepare` (preparing/) makes one folder for each list of packages and each Python:
a folder for every distribution, and `manifest.json`. It is never changed once it is there. A link
named after the Python says which folder is used.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from packaging.utils import canonicalize_name
from pydantic import ValidationError

from common.failures import ConfigurationError
from common.model import Contract

PREPARE = "fleet packages prepare"
INSIDE = "/opt/packages"
"""Where the distributions lie inside, each in a folder with its name."""
MANIFEST = "manifest.json"

THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""Numeric libraries start a thread for each core of the host when they are imported, and each maps
tens of megabytes: on a large host an `import numpy` alone would run into the limits on processes
and on addresses. Many sandboxes share the cores anyway."""


class Package(Contract):
    """One distribution."""

    version: str
    requires: tuple[str, ...] = ()
    """Those it needs itself; they are here too."""
    modules: tuple[str, ...] = ()
    """What programs import."""
    scripts: tuple[str, ...] = ()
    """Its programs, in the folder `bin`."""


class Manifest(Contract):
    """Everything in one prepared folder."""

    python: str
    """The Python it was made for; see `python_tag`."""
    interpreter: Path
    """That runs the scripts."""
    lock_sha256: str
    """Of the list of packages."""
    packages: dict[str, Package]
    """By normalised name."""

    def closure(self, names: Iterable[str]) -> dict[str, Package]:
        """Return these packages and all they need, by name. Each must be here."""
        found: dict[str, Package] = {}
        waiting: list[str] = [canonicalize_name(name) for name in names]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = self.packages[name]
                waiting += found[name].requires
        return dict(sorted(found.items()))

    def sight(self, names: Iterable[str]) -> str:
        """Say in words what these packages let a program import."""
        told = []
        for name in sorted({canonicalize_name(name) for name in names}):
            package = self.packages[name]
            differs = package.modules and name not in package.modules
            module = f", import {' or '.join(package.modules)}" if differs else ""
            told.append(f"{name} ({package.version}{module})")
        return ", ".join(told)


def objection(names: Sequence[str], manifest: Manifest | None) -> str | None:
    """Say why programs cannot have these packages, and what they could have; None if they can."""
    if not names:
        return None
    if manifest is None:
        return f"no Python packages are prepared on this worker's host: run `{PREPARE}` there"
    unknown = [repr(name) for name in names if canonicalize_name(name) not in manifest.packages]
    if not unknown:
        return None
    known = ", ".join(f"{name} {one.version}" for name, one in sorted(manifest.packages.items()))
    return f"{', '.join(unknown)} not prepared on this worker's host; there is: {known}"


class Prepared(Contract):
    """A folder of packages, and what is in it."""

    folder: Path
    manifest: Manifest

    def folders(self, names: Iterable[str]) -> dict[str, Path]:
        """Return the folders of these packages and all they need, by name."""
        return {name: self.folder / name for name in self.manifest.closure(names)}

    def environment(self, names: Iterable[str], path: str) -> dict[str, str]:
        """Return the variables with which programs find these packages; ``path``: PATH so far."""
        picked = self.manifest.closure(names)
        if not picked:
            return {}
        bins = [f"{INSIDE}/{name}/bin" for name, package in picked.items() if package.scripts]
        return {
            **THREADS,
            "PYTHONPATH": ":".join(f"{INSIDE}/{name}" for name in picked),
            "PATH": ":".join((*bins, path)),
        }


def python_tag(version: str) -> str:
    """Return the name for all Pythons that run the same wheels; ``version`` as in 3.11.2."""
    major, minor = version.split(".")[:2]
    return f"python-{major}.{minor}-{platform.machine()}"


def find(root: Path, version: str) -> Prepared | None:
    """Return what is prepared for this Python, if anything is.

    Raises `ConfigurationError` where it is damaged, or out of reach for sandboxes.
    """
    link = root / python_tag(version)
    try:
        folder = link.resolve(strict=True)
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError) as error:
        raise ConfigurationError(
            f"{link} leads nowhere: {error}; remove it and run `{PREPARE}` again"
        ) from None
    try:
        manifest = manifest_of(folder)
    except (OSError, ValueError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ConfigurationError(
            f"the Python packages in {folder} are damaged ({why}): run `{PREPARE}` again, with "
            "the same list if it was one of your own, which makes them anew"
        ) from None
    if closed := next(out_of_reach(folder), None):
        raise ConfigurationError(
            f"sandboxes cannot reach the Python packages in {folder}: each is a user of its own, "
            f"and {closed} is closed to others. Open it (chmod o+x {closed}), or set "
            f"FLEET_PACKAGES to an open folder and run `{PREPARE}` again"
        )
    return Prepared(folder=folder, manifest=manifest)


def manifest_of(folder: Path) -> Manifest:
    """Return what is in a prepared folder. Raises `OSError` or `ValueError` if it is damaged."""
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    for name in manifest.packages:
        if not (folder / name).is_dir():
            raise ValueError(f"{name} is missing")
    return manifest


def out_of_reach(folder: Path) -> Iterator[Path]:
    """Yield the folders on the way that a sandbox's user cannot pass, from the top.

    Started by root, each jail has a user of its own; started by anybody else, it is that user.
    """
    if os.geteuid() == 0:
        for step in (*reversed(folder.parents), folder):
            if not step.stat().st_mode & 0o001:
                yield step
