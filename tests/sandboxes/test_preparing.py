"""Packages are made from hashes alone; killed, repeated or doubled, it comes out the same."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from common.failures import ConfigurationError
from tests.helpers import eventually
from tests.sandboxes.wheels import PYTHON, Wheelhouse, contents, python_of, root, wheelhouse
from workers.sandboxes.preparing import builder
from workers.sandboxes.preparing.builder import prepare
from workers.sandboxes.preparing.lockfile import read
from workers.sandboxes.python_packages import MANIFEST, find, python_tag

__all__ = ["root", "wheelhouse"]  # fixtures
REPOSITORY = Path(__file__).parents[2]
HASH = f"--hash=sha256:{'0' * 64}"


# -- lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("alpha", "does not name one version"),
        (f"alpha>=1.0 {HASH}", "does not name one version"),
        (f"alpha==1.* {HASH}", "does not name one version"),
        (f"alpha @ https://example.org/alpha.whl {HASH}", "does not name one version"),
        ("alpha==1.0", "needs hashes"),
        ("alpha==1.0 --hash=md5:d41d8cd98f00b204e9800998ecf8427e", "needs hashes"),
        (f"alpha==1.0 {HASH} --global-option=x", "and nothing else"),
        ("--index-url https://example.org", "'--index-url' is no package"),
        ("-r other.txt", "'-r' is no package"),
        ("-e .", "'-e' is no package"),
        (f"./alpha.whl {HASH}", "is no package"),
        (f"beta==2.0 {HASH}", "beta is in the list twice"),
    ],
)
def test_a_list_that_leaves_something_open_is_refused(
    tmp_path: Path, line: str, reason: str
) -> None:
    file = tmp_path / "x.lock"
    file.write_text(f"# a comment\nbeta==1.0 \\\n    {HASH}\n\n{line}\n")
    with pytest.raises(ConfigurationError, match="line 5") as refused:
        read(file, {"python_version": "3.11"})
    assert reason in str(refused.value)


def test_a_list_may_hold_what_tools_write(tmp_path: Path) -> None:
    file = tmp_path / "x.lock"
    file.write_text(
        f"Some_Name[b,a]==1.0 ; python_version >= '3.11' \\\n    {HASH} \\\n    {HASH}  # why\n"
        f"    # via something\nold==1.0; python_version < '3.11' {HASH}"
    )
    [pin] = read(file, {"python_version": "3.11"}).pins
    assert (pin.name, pin.version, pin.extras) == ("some-name", "1.0", ("a", "b"))
    assert len(pin.hashes) == 2
    assert [pin.name for pin in read(file, {"python_version": "3.10"}).pins] == ["old"]
    for content in (b"", b"# nothing\n", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"x\.lock"):
            read(file, {"python_version": "3.11"})


# -- preparing ------------------------------------------------------------------------------------


def test_each_distribution_gets_a_folder_and_a_place_in_the_manifest(
    root: Path, wheelhouse: Wheelhouse
) -> None:
    wheelhouse.add("Al-Pha", requires=["beta[more]>=1"], scripts={"alpha": "al_pha:version"})
    wheelhouse.add("beta", requires=["gamma; extra == 'more'", "delta; sys_platform == 'win32'"])
    wheelhouse.add("gamma", "2.5", files={"gam/__init__.py": "", "gam/data.txt": "", "_c.py": ""})
    lock = wheelhouse.lock("Al-Pha==1.0", "beta==1.0", "gamma==2.5")
    seen: list[str] = []
    prepared, work = prepare(root, lock, PYTHON, lambda what, *_: seen.append(what))
    assert work
    assert seen == ["al-pha 1.0", "beta 1.0", "gamma 2.5", "ready"]
    packages = prepared.manifest.packages
    assert {name: one.requires for name, one in packages.items()} == {
        "al-pha": ("beta",), "beta": ("gamma",), "gamma": (),
    }  # fmt: skip
    assert packages["gamma"].modules == ("gam",)
    assert packages["al-pha"].scripts == ("alpha",)
    assert list(prepared.manifest.closure(["AL_PHA"])) == ["al-pha", "beta", "gamma"]
    assert prepared.manifest.sight(["gamma", "beta"]) == "beta (1.0), gamma (2.5, import gam)"
    assert contents(prepared.folder) == ["al-pha", "beta", "gamma", MANIFEST]
    script = prepared.folder / "al-pha" / "bin" / "alpha"
    assert script.read_text().startswith(f"#!{PYTHON}\n")
    assert list((prepared.folder / "beta").rglob("*.pyc")), "compiled beforehand"


def test_what_is_prepared_is_not_prepared_again(root: Path, wheelhouse: Wheelhouse) -> None:
    wheelhouse.add("alpha")
    lock = wheelhouse.lock("alpha==1.0")
    first, _ = prepare(root, lock, PYTHON)
    again, work = prepare(root, lock, PYTHON)
    assert (again, work) == (first, False)


def test_an_interrupted_preparation_goes_on_where_it_stopped(
    root: Path, wheelhouse: Wheelhouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheelhouse.add("alpha")
    wheelhouse.add("beta")
    lock = wheelhouse.lock("alpha==1.0", "beta==1.0")
    away = (wheelhouse.folder / "beta-1.0-py3-none-any.whl").rename(wheelhouse.folder / "away")
    with pytest.raises(ConfigurationError, match=r"beta 1\.0 could not be installed"):
        prepare(root, lock, PYTHON)
    assert find(root, python_of(PYTHON)) is None, "half of a list is no list"
    away.rename(wheelhouse.folder / "beta-1.0-py3-none-any.whl")
    installed: list[str] = []
    install = builder._install

    def noted(pin: Any, *rest: Any) -> None:
        installed.append(pin.name)
        install(pin, *rest)

    monkeypatch.setattr(builder, "_install", noted)
    prepared, _ = prepare(root, lock, PYTHON)
    assert installed == ["beta"]
    assert contents(prepared.folder) == ["alpha", "beta", MANIFEST]
    assert [path for path in root.rglob(".*") if path.name != ".lock"] == [], "no drafts are left"


KILLED = """
import sys
from pathlib import Path
from workers.sandboxes.preparing.builder import prepare
prepare(*map(Path, sys.argv[1:4]))
"""


async def test_what_a_killed_preparation_left_running_does_no_harm(
    root: Path, wheelhouse: Wheelhouse
) -> None:
    for name in ("alpha", "beta", "gamma"):
        wheelhouse.add(name)
    lock = wheelhouse.lock("alpha==1.0", "beta==1.0", "gamma==1.0")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(root), str(lock), str(PYTHON)], cwd=REPOSITORY
    )
    await eventually(lambda: bool(list(root.rglob(".beta.txt"))), "pip at work")
    process.kill()
    process.wait()
    prepared, work = await asyncio.to_thread(prepare, root, lock, PYTHON)
    assert work
    assert contents(prepared.folder) == ["alpha", "beta", "gamma", MANIFEST]
    assert [path for path in root.rglob(".*") if path.name != ".lock"] == []


async def test_two_that_prepare_at_once_do_the_work_once(
    root: Path, wheelhouse: Wheelhouse
) -> None:
    wheelhouse.add("alpha")
    lock = wheelhouse.lock("alpha==1.0")
    done = await asyncio.gather(*(asyncio.to_thread(prepare, root, lock, PYTHON) for _ in range(3)))
    assert sorted(work for _, work in done) == [False, False, True]
    assert len({prepared.folder for prepared, _ in done}) == 1


def test_other_bytes_than_the_listed_are_refused(root: Path, wheelhouse: Wheelhouse) -> None:
    wheelhouse.add("alpha")
    lock = wheelhouse.lock("alpha==1.0")
    wheelhouse.add("alpha", files={"alpha.py": "evil = True"})
    with pytest.raises(ConfigurationError, match=r"(?i)hash"):
        prepare(root, lock, PYTHON)
    assert [path for path in root.iterdir() if not path.name.startswith(".")] == []


def test_nothing_is_ever_built(root: Path, wheelhouse: Wheelhouse) -> None:
    mark = wheelhouse.folder / "ran"
    source = wheelhouse.folder / "setup.py"
    source.write_text(f"open({str(mark)!r}, 'w'); from setuptools import setup; setup()")
    archive = wheelhouse.folder / "alpha-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, "alpha-1.0/setup.py")
    with pytest.raises(ConfigurationError, match=r"alpha 1\.0 could not be installed.*wheel"):
        prepare(root, wheelhouse.lock("alpha==1.0"), PYTHON)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("needs", "reason"),
    [("beta", "alpha needs beta, which is not listed"), ("gamma>1", r"gamma>1, but 1\.0 is")],
)
def test_a_list_that_lacks_something_is_refused(
    root: Path, wheelhouse: Wheelhouse, needs: str, reason: str
) -> None:
    wheelhouse.add("alpha", requires=[needs])
    wheelhouse.add("gamma")
    with pytest.raises(ConfigurationError, match=reason):
        prepare(root, wheelhouse.lock("alpha==1.0", "gamma==1.0"), PYTHON)


def test_another_list_gets_a_folder_of_its_own(root: Path, wheelhouse: Wheelhouse) -> None:
    wheelhouse.add("alpha")
    wheelhouse.add("alpha", "2.0")
    old, _ = prepare(root, wheelhouse.lock("alpha==1.0"), PYTHON)
    new, _ = prepare(root, wheelhouse.lock("alpha==2.0"), PYTHON)
    assert new.folder != old.folder
    assert contents(old.folder) == ["alpha", MANIFEST], "whoever uses it keeps it"
    version = python_of(PYTHON)
    assert find(root, version) == new
    prepare(root, wheelhouse.lock("alpha==1.0"), PYTHON)
    assert find(root, version) == old
    assert find(root, "3.99.1") is None


@pytest.mark.parametrize("damage", ["half a manifest", "no manifest", "a package is missing"])
def test_a_damaged_folder_is_told_and_made_anew(
    root: Path, wheelhouse: Wheelhouse, damage: str
) -> None:
    wheelhouse.add("alpha")
    lock = wheelhouse.lock("alpha==1.0")
    prepared, _ = prepare(root, lock, PYTHON)
    for _ in range(2):  # also where it was damaged before
        match damage:
            case "half a manifest":
                (prepared.folder / MANIFEST).write_text('{"packages": {}')
            case "no manifest":
                (prepared.folder / MANIFEST).unlink()
            case _:
                (prepared.folder / "alpha").rename(root / "elsewhere")
                shutil.rmtree(root / "elsewhere")
        with pytest.raises(ConfigurationError, match=rf"{prepared.folder} are damaged.*again"):
            find(root, python_of(PYTHON))
        assert prepare(root, lock, PYTHON) == (prepared, True)
        assert contents(prepared.folder) == ["alpha", MANIFEST]
    assert (root / f".{prepared.folder.name}.damaged").is_dir(), "jails that run may use it"


def test_one_patch_release_of_python_reads_the_packages_of_another() -> None:
    assert python_tag("3.11.2") == python_tag("3.11.15")
    assert python_tag("3.11.2") != python_tag("3.12.2")


@pytest.mark.skipif(os.geteuid() != 0, reason="other users' jails are those users themselves")
def test_a_folder_that_jails_cannot_reach_is_named(root: Path, wheelhouse: Wheelhouse) -> None:
    wheelhouse.add("alpha")
    root.mkdir(mode=0o700)
    with pytest.raises(ConfigurationError, match=rf"chmod o\+x {root}\)"):
        prepare(root, wheelhouse.lock("alpha==1.0"), PYTHON)
    root.chmod(0o711)
    assert find(root, python_of(PYTHON)) is not None


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, wheelhouse: Wheelhouse) -> None:
    wheelhouse.add("alpha")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"cannot prepare packages in .*FLEET_PACKAGES"):
        prepare(tmp_path / "file" / "packages", wheelhouse.lock("alpha==1.0"), PYTHON)
