"""Reads tasks files for commands that look at a whole file at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.task import Task
from dispatcher.parse import Work, parse, too_long

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """One line that is not blank: a task, or what is wrong with it."""

    number: int
    task: Task | None
    problems: tuple[tuple[str, str], ...] = ()


def read_tasks(path: Path, *, limit: int) -> Iterator[Line]:
    """Yield the lines of ``path``. Raises `OSError` when it cannot be read."""
    with path.open("rb") as file:
        number, utf16 = 0, False
        while raw := file.readline(limit + 1):
            number += 1
            if number == 1:
                utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
                raw = raw.removeprefix(_BOM)
            if len(raw) > limit:
                size = len(raw)
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(limit)
                    size += len(raw)
                yield Line(number, None, too_long(size, limit).problems)
                continue
            found = parse(raw, utf16=utf16)
            if isinstance(found, Work):
                yield Line(number, found.task)
            elif found is not None:
                yield Line(number, None, found.problems)
