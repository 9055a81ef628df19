"""Any user can have sandboxes, not only root: the conformance and the hostile suite as nobody."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest

REPOSITORY = Path(__file__).parents[2]
NOBODY = 65534
PARTS = ("common", "workers", "tests", "pyproject.toml")
"""Of the repository, what the suites need."""
SUITES = ("tests/sandboxes/test_nsjail.py", "tests/sandboxes/test_nsjail_hostile.py")
HEAVY = ("xllamacpp*", "numpy*", "mypy*", "*__mypyc*", "pip", "ruff*", "__pycache__", "*.pyc")
"""Packages that the suites do not import."""


@pytest.fixture(scope="module")
def python() -> str:
    """An interpreter that everybody may run."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = shutil.which(f"python{version}", path="/usr/bin:/usr/local/bin")
    if found is None:
        pytest.skip(f"no Python {version} here that another user may run")
    return found


@pytest.fixture(scope="module")
def open_house() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are closed to others by every pytest."""
    with tempfile.TemporaryDirectory(prefix="fleet-house-") as folder:
        house = Path(folder)
        house.chmod(0o755)
        yield house


def readable(path: Path) -> bool:
    """Say whether another user may read this file, or list this folder."""
    looked = subprocess.run(
        ["/bin/sh", "-c", 'test -r "$1" && { test ! -d "$1" || test -x "$1"; }', "sh", str(path)],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", check=False,
    )  # fmt: skip
    return looked.returncode == 0


def copied(source: Path, names: tuple[str, ...], house: Path, label: str) -> Path:
    """Return a folder with these parts of another, which everybody may read."""
    target = house / label
    target.mkdir()
    for name in names:
        part = source / name
        if part.is_dir():
            shutil.copytree(part, target / name, ignore=shutil.ignore_patterns(*HEAVY))
        else:
            shutil.copy(part, target / name)
    subprocess.run(["chmod", "-R", "a+rX", str(target)], check=True)
    return target


@pytest.mark.skipif(os.geteuid() != 0, reason="all suites run as a normal user already")
def test_a_normal_user_gets_the_same_sandboxes(python: str, open_house: Path) -> None:
    """The same tests in a process that is nobody, with folders of its own, and no cache."""
    repository, packages = REPOSITORY, Path(pydantic.__file__).parents[1]
    if not all(readable(repository / suite) for suite in SUITES):
        repository = copied(repository, PARTS, open_house, "repository")
    if not readable(packages / "pytest" / "__init__.py"):
        names = tuple(path.name for path in packages.iterdir())
        kept = shutil.ignore_patterns(*HEAVY)(str(packages), list(names))
        packages = copied(packages, tuple(set(names) - kept), open_house, "packages")
    own = open_house / "own"
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    # Packages are chosen for the exact version of this interpreter. Python before 3.11.3, which a
    # system may have, needs one more; what it is needed for is in the standard library.
    (open_house / "async_timeout.py").write_text("from asyncio import timeout\n")
    pythonpath = f"{repository}:{packages}:{open_house}"
    done = subprocess.run(
        [python, "-S", "-m", "pytest", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin",
         "--tb=short", f"--basetemp={own}/pytest", "-k", "not nsjail-cgroup", *SUITES],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd=repository, capture_output=True,
        text=True, timeout=500, check=False,
        env={"HOME": str(own), "TMPDIR": str(own), "PYTHONPATH": pythonpath, "LANG": "C.UTF-8",
             "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1",
             "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    )  # fmt: skip
    report = f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}"
    assert done.returncode == 0, report
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 100, report
