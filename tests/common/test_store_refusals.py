"""A store that cannot be written says so and what to do, and keeps what it has."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.failures import ConfigurationError
from common.store import Store, StoreError, open_store
from tests.common.stored import FIRST, everything_in, keep, made

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


def test_a_store_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    store = open_store(tmp_path / "deep" / "output")
    assert list(store.root.iterdir()) == []


def test_a_path_below_a_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "output"):
        with pytest.raises(ConfigurationError, match=r"^FLEET_OUTPUT: .*set FLEET_OUTPUT"):
            open_store(root)
        with pytest.raises(StoreError, match="set FLEET_OUTPUT") as refused:
            Store(root).write_attempt(made())
        assert str(root) in str(refused.value)


AS_NOBODY = """
import os, sys
from pathlib import Path
from common.store import Store, StoreError
from common.trajectory import Trajectory

trajectory = Trajectory.model_validate_json(sys.stdin.buffer.read())
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
store = Store(Path(sys.argv[1]))
for write in (store.prove_writable, lambda: store.write_attempt(trajectory)):
    try:
        write()
        print("written")
    except StoreError as error:
        print(error)
"""


def test_a_folder_of_somebody_else_is_refused_with_what_to_do() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, folder],
            input=made().model_dump_json(by_alias=True).encode(),
            stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        said = done.stdout.decode().splitlines()
        Path(folder).chmod(0o755)
    assert len(said) == 2
    for sentence in said:
        assert sentence.startswith(folder)
        assert sentence.endswith(
            "Permission denied; make it writable for this user, or set FLEET_OUTPUT elsewhere"
        )


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own at ``folder``."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "fleet-test", folder],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"may not mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@ROOT_ONLY
def test_a_read_only_disk_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with (
        mounted(tmp_path / "disk", "ro,size=64k") as disk,
        pytest.raises(ConfigurationError, match=r"FLEET_OUTPUT: .*Read-only.*set FLEET_OUTPUT"),
    ):
        open_store(disk)


@ROOT_ONLY
def test_a_full_disk_says_so_and_work_goes_on_once_there_is_space(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=256k") as disk:
        store = open_store(disk)
        keep(store)
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        before = everything_in(disk)

        whole = made(attempt_id="r2-s0-1700000000000-0-d1-aa", final_result="x" * 20_000)
        for write in (
            store.prove_writable,
            lambda: store.write_attempt(whole),
            lambda: store.put_blob(bytes(20_000), media_type="text/plain", ext="txt"),
        ):
            with pytest.raises(StoreError, match="disk is full; free some space"):
                write()
        assert everything_in(disk) == before, "a failed write left something behind"
        assert [r.trajectory.attempt_id for r in store.reviewed()] == [FIRST]

        ballast.unlink()
        store.prove_writable()
        store.write_attempt(whole)
        assert store.read_attempt("t", whole.attempt_id) == whole


@ROOT_ONLY
def test_a_disk_without_inodes_is_a_full_disk(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=256k,nr_inodes=2") as disk:
        store = open_store(disk)  # the probe takes the last inode, and gives it back
        with pytest.raises(StoreError, match="disk is full"):
            store.write_attempt(made())
