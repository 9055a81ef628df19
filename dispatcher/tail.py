"""Reads a growing file in whole lines, from a position that knows whether the file still fits it.

Nothing here remembers anything: a position is text that the queue keeps, and a chunk is what lies
behind it. The bytes before a position are part of it as a hash, so a file that was truncated,
rewritten or replaced is noticed by its content, and one that only grew goes on where it was.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

ANCHOR_BYTES = 4096
CHUNK_BYTES = 256 * 1024
CHUNK_LINES = 1000
_SCAN_BYTES = 1 << 20
_KEEP_BYTES = 2048
"""What is kept of a line too long to read: enough for a person to recognise it."""
_BOM = b"\xef\xbb\xbf"
_POSITION = re.compile(r"(\d{1,18}):(\d{1,18}):([0-9a-f]{16})(?::(\d{1,18})(?::(\d{1,18}))?)?")


class Rewritten(Exception):
    """The bytes before the position are not what they were: begin at the start again."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size
        """Bytes of the file now."""


def anchor(before: bytes) -> str:
    """Return the fingerprint of the bytes before a position."""
    return hashlib.sha256(before[-ANCHOR_BYTES:]).hexdigest()[:16]


@dataclass(frozen=True)
class Position:
    """A place between two lines; as text `offset:line:anchor`, then `:reread` while re-reading,
    then `:recover` while the queue is told again what it has forgotten."""

    offset: int = 0
    """Bytes before it."""
    line: int = 0
    """Newlines before it."""
    anchor: str = anchor(b"")
    reread: int = 0
    """What lies before this offset may have been read before the file was rewritten: a task that
    is known already is no news there. 0 when the file never was rewritten."""
    recover: int = 0
    """What lies before this offset may have ended in the memory of a queue that is gone: the store
    is asked about it. A task that comes twice there is news like anywhere else."""

    def __str__(self) -> str:
        text = f"{self.offset}:{self.line}:{self.anchor}"
        if self.recover:
            return f"{text}:{self.reread}:{self.recover}"
        return f"{text}:{self.reread}" if self.reread else text

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read what `str` wrote; anything else is the start of the file."""
        found = _POSITION.fullmatch(text)
        if found is None:
            return cls()
        offset, line, mark, reread, recover = found.groups()
        return cls(int(offset), int(line), mark, int(reread or 0), int(recover or 0))

    def restarted(self, size: int) -> Position:
        """The start of the file, now ``size`` bytes long, remembering that much of it is known."""
        # Both: a line inserted by an editor moves known ones beyond where we were, and an editor
        # in the middle of saving shows a file that is still short.
        return Position(reread=max(self.offset, self.reread, size), recover=self.recover)

    def recovering(self, size: int) -> Position:
        """The start of the file, now ``size`` bytes long, for a queue that knows nothing of it.

        What we have read ourselves is no news all the same: that queue may have lost no more than
        our position.
        """
        read = max(self.offset, self.reread)
        return Position(reread=read, recover=max(read, self.recover, size))

    def after(self, end: Position) -> Position:
        """``end``, still re-reading and recovering what that leaves of it."""
        return replace(
            end,
            reread=self.reread if end.offset < self.reread else 0,
            recover=self.recover if end.offset < self.recover else 0,
        )


class Line(NamedTuple):
    offset: int
    number: int
    """Counted from 1."""
    data: bytes
    """Without newline and byte order mark; only its beginning when it is too long."""
    size: int
    """Bytes in the file, without the newline."""


@dataclass(frozen=True)
class Chunk:
    """Whole lines from ``start`` to ``end``; none of them when there is nothing complete yet."""

    start: Position
    lines: tuple[Line, ...]
    end: Position
    size: int
    """Bytes of the file when it was read."""
    utf16: bool
    """The file begins with a UTF-16 byte order mark."""
    block: bytes = b""
    """What was read: the bytes the start's anchor covers, then the lines."""
    base: int = 0
    """Offset of ``block`` in the file."""

    def covers(self, position: Position) -> bool:
        """Whether ``position`` is a place in this chunk that has lines of it behind it."""
        if not self.start.offset <= position.offset < self.end.offset:
            return False
        return self._anchor(position.offset) == position.anchor

    def cut(self, count: int) -> Chunk:
        """Return the chunk with its first ``count`` lines only."""
        if count >= len(self.lines):
            return self
        first = self.lines[count]
        end = Position(first.offset, first.number - 1, self._anchor(first.offset) or "")
        return replace(self, lines=self.lines[:count], end=end)

    def _anchor(self, offset: int) -> str | None:
        stop = offset - self.base
        if stop > len(self.block):
            return None
        return anchor(self.block[max(0, stop - ANCHOR_BYTES) : stop])


def read(path: Path, start: Position, *, max_line: int, unended: bool = False) -> Chunk:
    """Return the whole lines behind ``start``: at most 1,000, a few hundred KiB or one long line.

    A line longer than ``max_line`` bytes is passed over in constant memory and cut. With
    ``unended`` a last line counts even without its newline. Raises `Rewritten`, or OSError when
    the file cannot be read.
    """
    # Not blocking: opening a named pipe must not hang before we see what it is.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        base = max(0, start.offset - ANCHOR_BYTES)
        before = start.offset - base
        block, wanted = os.pread(fd, before + CHUNK_BYTES, base), CHUNK_BYTES
        if len(block) < before or anchor(block[:before]) != start.anchor:
            raise Rewritten(status.st_size)
        if len(block) == before + wanted and block.find(b"\n", before) < 0:
            wanted = max(max_line + 1, CHUNK_BYTES)
            block = os.pread(fd, before + wanted, base)
        utf16 = os.pread(fd, 2, 0) in (b"\xff\xfe", b"\xfe\xff")
        lines, end = _split(block, before, start, max_line)
        if not lines:
            if len(block) == before + wanted:
                lines, end = _pass_over(fd, block[before:], start, unended)
            elif unended and len(block) > before:
                lines = [_line(start.offset, start.line + 1, block[before:], max_line)]
                # The newline may still come: it belongs to this line, so it is not counted yet.
                end = Position(base + len(block), start.line, anchor(block))
        return Chunk(start, tuple(lines), end, status.st_size, utf16, block, base)
    finally:
        os.close(fd)


def _split(block: bytes, at: int, start: Position, max_line: int) -> tuple[list[Line], Position]:
    """Return the lines that end within ``block`` from index ``at``, and the place behind them."""
    parts = block[at : block.rfind(b"\n", at) + 1].split(b"\n", CHUNK_LINES)[:-1]
    if not parts:
        return [], start
    lines: list[Line] = []
    offset, number = start.offset, start.line
    for data in parts:
        number += 1
        lines.append(_line(offset, number, data, max_line))
        offset += len(data) + 1
    stop = at + offset - start.offset
    mark = anchor(block[max(0, stop - ANCHOR_BYTES) : stop])
    return lines, Position(offset, number, mark)


def _line(offset: int, number: int, data: bytes, max_line: int) -> Line:
    kept = data[:_KEEP_BYTES] if len(data) > max_line else data
    # Anywhere, not just at the start of the file: `cat a.jsonl b.jsonl` leaves one in the middle.
    return Line(offset, number, kept.removeprefix(_BOM), len(data))


def _pass_over(fd: int, seen: bytes, start: Position, unended: bool) -> tuple[list[Line], Position]:
    """Find the end of a line that is too long, without holding it."""
    at, found = start.offset + len(seen), -1
    while found < 0 and (block := os.pread(fd, _SCAN_BYTES, at)):
        found = block.find(b"\n")
        at += len(block) if found < 0 else found
    if found < 0 and not unended:
        return [], start
    line = Line(start.offset, start.line + 1, seen[:_KEEP_BYTES], at - start.offset)
    end = at + (found >= 0)
    before = os.pread(fd, min(end, ANCHOR_BYTES), max(0, end - ANCHOR_BYTES))
    return [line], Position(end, start.line + (found >= 0), anchor(before))
