"""Keeps every line that could not be queued in `rejected.jsonl`, with the reason, once."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from dispatcher.tail import Line

FILE_NAME = "rejected.jsonl"
_TEXT = 500
_REASON = 1000
_REMEMBERED = 20_000
_LOOK_BACK = 16 << 20
_LOCK_SECONDS = 5.0
_SAME = ("file", "line", "offset", "field", "reason", "text")


@dataclass(frozen=True)
class Reject:
    """One line that was not queued, and why."""

    file: str
    line: Line
    problems: Sequence[tuple[str, str]]
    task_id: str | None = None

    def row(self) -> dict[str, Any]:
        """Return what `rejected.jsonl` says about it; `others` are further problems it has."""
        field, reason = self.problems[0]
        row: dict[str, Any] = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "file": self.file,
            "line": self.line.number,
            "offset": self.line.offset,
            "field": field[:_TEXT],
            "reason": reason[:_REASON],
        }
        if len(self.problems) > 1:
            row["others"] = [[f[:_TEXT], r[:_REASON]] for f, r in self.problems[1:]]
        if self.task_id is not None:
            row["task_id"] = self.task_id
        row["text"] = self.line.data[: 4 * _TEXT].decode(errors="replace")[:_TEXT]
        return row


class Rejects:
    """The file of rejected lines in the output folder, shared with other dispatchers.

    Rows are written before the position moves past their lines, so a crash in between offers them
    again; two dispatchers on one file both offer them. A row that is there already is not added.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._recent: OrderedDict[bytes, None] = OrderedDict()
        self._read_to = -1
        self._inode = -1

    def write(self, rejects: Iterable[Reject]) -> int:
        """Add what is not there yet, durably; returns the number of new rows. Raises OSError."""
        rows = [reject.row() for reject in rejects]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _lock(fd)
            size = self._catch_up(fd)
            new = {key: row for row in rows if (key := _key(row)) not in self._recent}
            if new:
                text = b"".join(orjson.dumps(row) + b"\n" for row in new.values())
                if size and os.pread(fd, 1, size - 1) != b"\n":
                    text = b"\n" + text  # a crash cut the last row off
                _append(fd, text, size)
                self._read_to = size + len(text)
                self._remember(new)
            return len(new)
        finally:
            os.close(fd)

    def _catch_up(self, fd: int) -> int:
        """Remember rows written since we last looked, by us or others; returns the file's size."""
        status = os.fstat(fd)
        if status.st_ino != self._inode or status.st_size < self._read_to:
            self._inode, self._read_to = status.st_ino, max(0, status.st_size - _LOOK_BACK)
        if status.st_size > self._read_to:
            with os.fdopen(os.dup(fd), "rb") as file:
                file.seek(self._read_to)
                for text in file:
                    try:
                        self._remember([_key(orjson.loads(text))])
                    except (orjson.JSONDecodeError, AttributeError):
                        continue  # cut off by a crash, or written by a person
            self._read_to = status.st_size
        return status.st_size

    def _remember(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._recent[key] = None
        while len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)


def _key(row: dict[str, Any]) -> bytes:
    same = orjson.dumps([row.get(name) for name in _SAME])
    return hashlib.blake2b(same, digest_size=16).digest()


def _lock(fd: int) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise OSError(errno.EAGAIN, "another process has kept it locked") from None
        time.sleep(0.01)  # in a thread; the lock is held for one short write


def _append(fd: int, text: bytes, size: int) -> None:
    """Write all of ``text`` durably, or none of it."""
    rest = memoryview(text)
    try:
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    except OSError:
        os.ftruncate(fd, size)
        raise
