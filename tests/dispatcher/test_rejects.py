"""rejected.jsonl holds every rejected line once, through crashes, company and a full disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from dispatcher.rejects import Reject, Rejects
from dispatcher.tail import Line


def rejects(*numbers: int, file: str = "/f") -> Sequence[Reject]:
    return [
        Reject(file, Line(10 * n, n, b"{bad %d" % n, 6), (("(line)", "no JSON"),)) for n in numbers
    ]


def read(folder: Path) -> list[int]:
    return [orjson.loads(row)["line"] for row in (folder / "rejected.jsonl").open("rb")]


def test_a_row_offered_again_is_not_written_again(tmp_path: Path) -> None:
    assert Rejects(tmp_path).write(rejects(1, 2)) == 2
    after_a_crash = Rejects(tmp_path)
    assert after_a_crash.write(rejects(1, 2, 3)) == 1
    assert after_a_crash.write(rejects(1, file="/other")) == 1
    assert read(tmp_path) == [1, 2, 3, 1]


def test_two_dispatchers_do_not_write_the_same_row(tmp_path: Path) -> None:
    one, two = Rejects(tmp_path), Rejects(tmp_path)
    written = [one.write(rejects(1)), two.write(rejects(1, 2)), one.write(rejects(2, 3))]
    assert (written, read(tmp_path)) == ([1, 1, 1], [1, 2, 3])


def test_a_row_cut_off_by_a_crash_spoils_no_other(tmp_path: Path) -> None:
    Rejects(tmp_path).write(rejects(1, 2))
    path = tmp_path / "rejected.jsonl"
    os.truncate(path, path.stat().st_size - 5)
    assert Rejects(tmp_path).write(rejects(1, 2)) == 1
    assert orjson.loads(path.read_bytes().splitlines()[-1])["line"] == 2


def test_a_file_moved_away_is_begun_anew(tmp_path: Path) -> None:
    writer = Rejects(tmp_path)
    writer.write(rejects(1))
    (tmp_path / "rejected.jsonl").rename(tmp_path / "old")
    writer.write(rejects(2))
    assert read(tmp_path) == [2]


def test_a_full_disk_leaves_no_half_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Rejects(tmp_path)
    writer.write(rejects(1))
    real, calls = os.write, 0

    def full(fd: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            return real(fd, data[:7])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            writer.write(rejects(2))
    assert read(tmp_path) == [1]
    assert writer.write(rejects(2)) == 1
    assert read(tmp_path) == [1, 2]
