"""Reads a list of packages in which every line names one version and the hashes of its files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from common.failures import ConfigurationError
from common.model import Contract

_HASH = re.compile(r"--hash=(sha(?:256|384|512):[0-9a-fA-F]{64,128})")


class Pin(Contract):
    """One package of the list."""

    name: str
    """Normalised."""
    version: str
    extras: tuple[str, ...]
    hashes: tuple[str, ...]
    """Of the files that may be installed, any of them."""

    def line(self) -> str:
        """Return it as pip reads it, without the extras: what they need has lines of its own."""
        return " ".join((f"{self.name}=={self.version}", *(f"--hash={one}" for one in self.hashes)))


class LockFile(Contract):
    """What holds for one Python in a list of packages."""

    sha256: str
    """Of the whole file."""
    pins: tuple[Pin, ...]


def read(file: Path, environment: dict[str, str]) -> LockFile:
    """Return the packages whose markers hold in ``environment``, in their order.

    Raises `ConfigurationError` naming the line for anything but `name==version` with hashes: no
    options, no addresses, nothing that lets somebody else decide later what is installed.
    """
    try:
        content = file.read_bytes()
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from None
    pins: dict[str, Pin] = {}
    for number, line in _logical_lines(text):
        try:
            pin = _pin(line, environment)
            if pin and pins.setdefault(pin.name, pin) != pin:
                raise ValueError(f"{pin.name} is in the list twice")
        except ValueError as error:
            raise ConfigurationError(f"{file}, line {number}: {error}") from None
    if not pins:
        raise ConfigurationError(f"{file} lists no package for this Python")
    return LockFile(sha256=sha256(content).hexdigest(), pins=tuple(pins.values()))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each entry, lines that end in a backslash joined."""
    began, parts = 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        bare = re.sub(r"(^|\s)#.*", "", line).strip()
        if not parts:
            began = number
        if bare:
            parts.append(bare.removesuffix("\\").strip())
        if parts and not bare.endswith("\\"):
            yield began, " ".join(parts)
            parts = []
    if parts:
        yield began, " ".join(parts)


def _pin(line: str, environment: dict[str, str]) -> Pin | None:
    """Return the package of an entry, None if it is for others. Raises `ValueError`."""
    what, *options = re.split(r"\s+(?=--)", line)
    if what.startswith("-"):
        raise ValueError(f"{what.split()[0]!r} is no package; options are not accepted")
    try:
        requirement = Requirement(what)
    except InvalidRequirement as error:
        raise ValueError(f"{what!r} is no package: {str(error).splitlines()[0]}") from None
    versions = list(requirement.specifier)
    exact = len(versions) == 1 and versions[0].operator == "==" and "*" not in versions[0].version
    if requirement.url or not exact:
        raise ValueError(f"{what!r} does not name one version, as in {requirement.name}==1.0")
    hashes = [_HASH.fullmatch(option) for option in options]
    if not hashes or not all(hashes):
        raise ValueError(f"{what!r} needs hashes, as in --hash=sha256:…, and nothing else")
    if requirement.marker and not requirement.marker.evaluate({**environment, "extra": ""}):
        return None
    return Pin(
        name=canonicalize_name(requirement.name),
        version=versions[0].version,
        extras=tuple(sorted(requirement.extras)),
        hashes=tuple(match[1] for match in hashes if match),
    )
