"""Small wheels of our own, and a pip that finds nothing else."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from workers.sandboxes.preparing import builder

PYTHON = Path("/usr/bin/python3")


class Wheelhouse:
    """A folder of wheels, and lists that name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hashes: dict[str, str] = {}

    @classmethod
    def only(cls, folder: Path, environment: pytest.MonkeyPatch) -> Wheelhouse:
        """Return the wheelhouse in a folder, and let pip look nowhere else."""
        environment.setenv("PIP_CONFIG_FILE", "/dev/null")
        environment.setenv("PIP_NO_INDEX", "1")
        environment.setenv("PIP_FIND_LINKS", str(folder))
        return cls(folder)

    def add(
        self,
        name: str,
        version: str = "1.0",
        *,
        requires: Sequence[str] = (),
        files: Mapping[str, str] | None = None,
        scripts: Mapping[str, str] | None = None,
    ) -> None:
        """Make a wheel with a module of its name; ``scripts``: program to `module:function`."""
        stem = f"{name.replace('-', '_')}-{version}"
        info = f"{stem}.dist-info"
        module = name.replace("-", "_").lower()
        needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
        content = {
            **(files if files is not None else {f"{module}.py": f"version = {version!r}\n"}),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        if scripts:
            lines = "".join(f"{program} = {where}\n" for program, where in scripts.items())
            content[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}"
        content[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*content, f"{info}/RECORD"))
        wheel = self.folder / f"{stem}-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, text in content.items():
                archive.writestr(path, text)
        self._hashes[f"{name}=={version}"] = sha256(wheel.read_bytes()).hexdigest()

    def line(self, pin: str, marker: str = "") -> str:
        return f"{pin}{marker} --hash=sha256:{self._hashes.get(pin, '0' * 64)}\n"

    def lock(self, *pins: str, name: str = "packages.lock") -> Path:
        """Write a list of these packages."""
        file = self.folder / name
        file.write_text("".join(self.line(pin) for pin in pins))
        return file


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheelhouse:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return Wheelhouse.only(folder, monkeypatch)


@pytest.fixture
def root() -> Iterator[Path]:
    """A place for packages that other users can reach, unlike pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="fleet-packages-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder) / "packages"


def contents(folder: Path) -> list[str]:
    """Return what lies in a folder, drafts and the like left out."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def python_of(interpreter: Path) -> str:
    return builder._ask(interpreter)["python_full_version"]
