"""The append-only record of every decision: files that outlive the server it was made on.

<output>/audit/decisions-2026-01.jsonl   one JSON line per decision or word, by month (UTC)
<output>/audit/.copied.json              how far the server's streams have been copied
<output>/audit/.lock                     held while something is written

Reviews and people's words are decided in Redis, whose `decisions` streams forget. `copy` brings
them here, each once, whoever calls it and however often: what has been copied is read from the
lines themselves, so neither a crash nor a second reviewer can double or skip one. What the streams
lost before it could be copied is told by a line of its own.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from common.queue.connection import Server
from common.queue.keys import Keys
from common.store import StoreError

_PAGE = 500
_PATIENCE = 10.0
"""Seconds to wait for another process that writes: it needs milliseconds."""
_LOOK = 0.01

Row = tuple[str, dict[bytes, bytes]]


@dataclass
class _Copied:
    """What the lines say has been copied, as far as they have been read."""

    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each month that have been read."""
    last: dict[str, str] = field(default_factory=dict)
    """Scene → stream entry of its last line."""
    looked: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Scene → the two entries that its last line and its stream ended with when they were last
    compared line by line, and nothing was missing."""


class AuditLog:
    """Writes the decisions of a fleet below its output folder (``root``).

    All methods raise `StoreError` when the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._folder = root / "audit"

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line; it is on disk when this returns."""
        with self._alone():
            self._write(orjson.dumps(dict(record)) + b"\n")

    async def copy(self, server: Server, scenes: Sequence[str]) -> int:
        """Write what the scenes decided since the last time; returns how many lines are new.

        Raises what the server raises when it cannot be asked.
        """
        known = await asyncio.to_thread(self._known)
        done = await asyncio.gather(*(self._copy(server, scene, known) for scene in scenes))
        return sum(done)

    async def _copy(self, server: Server, scene: str, known: _Copied) -> int:
        newest = await _newest(server, Keys(scene).decisions)
        last, copied = known.last.get(scene), 0
        # Nothing there, or nothing younger than what has a line, or was found to have one.
        if newest in (None, last) or (last, newest) == known.looked.get(scene):
            return 0
        while True:
            rows, gap = await self._news(server, scene, last)
            if not rows:
                if not copied:
                    await asyncio.to_thread(self._note_look, scene, last, newest)
                return copied
            kept = await asyncio.to_thread(self._keep, scene, last, rows, gap)
            # Nothing is kept when another process was faster: then on from where it came to.
            copied += len(rows) if kept else 0
            if kept and len(rows) < _PAGE - 1:
                return copied
            last = rows[-1][0] if kept else (await asyncio.to_thread(self._known)).last.get(scene)

    async def _news(
        self, server: Server, scene: str, last: str | None
    ) -> tuple[list[Row], dict[str, Any] | None]:
        """Return the next entries after ``last``, and a line about what is missing before them."""
        stream = Keys(scene).decisions
        rows = await _page(server, stream, last or "-")
        if last is None:
            trimmed = bool(rows) and await _trimmed(server, stream)
            return rows, _gap(scene, "0-0", rows[0][0]) if trimmed else None
        if rows and rows[0][0] == last:
            return rows[1:], None
        # Trimmed beyond it, flushed, or an older copy of the server took over, whose entries may
        # come with lower ids: all that is there and has no line yet.
        known = await asyncio.to_thread(self._entries, scene)
        rows, low = [], "-"
        while page := await _page(server, stream, low):
            low = f"({page[-1][0]}"
            rows += [row for row in page if row[0] not in known]
            if len(rows) >= _PAGE or len(page) < _PAGE:
                break
        return rows, _gap(scene, last, rows[0][0]) if rows else None

    def _keep(self, scene: str, last: str | None, rows: list[Row], gap: Any) -> bool:
        """Write entries of a scene, if the last of its lines is still ``last``."""
        lines = [gap] if gap else []
        lines += [_line(scene, entry, fields) for entry, fields in rows]
        with self._alone():
            copied = self._copied()
            if copied.last.get(scene) != last:
                return False
            self._write(b"".join(orjson.dumps(line) + b"\n" for line in lines))
            self._remember(self._copied(copied))
        return True

    def _note_look(self, scene: str, last: str | None, newest: str | None) -> None:
        """Remember that all up to ``newest`` has a line, so that it is not compared again."""
        with self._alone():
            copied = self._copied()
            if last is not None and newest is not None and copied.last.get(scene) == last:
                copied.looked[scene] = (last, newest)
                self._remember(copied)

    # -- files -------------------------------------------------------------------------------

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock; it is held for one write only."""
        deadline = time.monotonic() + _PATIENCE
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o750)
            with _opened(self._folder / ".lock", os.O_RDWR) as lock:
                while not _locked(lock):
                    if time.monotonic() > deadline:
                        raise StoreError(f"{self._folder}: another process holds .lock in it")
                    time.sleep(_LOOK)
                yield
        except OSError as error:
            raise StoreError(
                f"{error.filename or self._folder}: {error.strerror}; decisions must be written "
                "down: make it writable for this user, with space left"
            ) from None

    def _write(self, data: bytes) -> None:
        path = self._folder / f"decisions-{datetime.now(UTC):%Y-%m}.jsonl"
        new = not path.exists()
        with _opened(path, os.O_RDWR | os.O_APPEND) as file:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":
                data = b"\n" + data  # a crash cut the last line off: the next begins on its own
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        if new:
            with _opened(self._folder, os.O_RDONLY | os.O_DIRECTORY) as folder:
                os.fsync(folder)

    def _known(self) -> _Copied:
        with self._alone():
            remembered = self._remembered()
            sizes = dict(remembered.sizes)
            copied = self._copied(remembered)
            if copied.sizes != sizes:
                self._remember(copied)  # else it would all be read again at the next look
            return copied

    def _copied(self, copied: _Copied | None = None) -> _Copied:
        """Return how far the streams have been copied: as remembered, and what was added since."""
        copied = copied or self._remembered()
        months = _months(self._folder)
        if any(path.stat().st_size < copied.sizes.get(path.name, 0) for path in months):
            copied = _Copied()  # somebody changed a file: the lines that are left say it all
        for path in months:
            begin = copied.sizes.get(path.name, 0)
            if path.stat().st_size == begin:
                continue
            with path.open("rb") as file:
                file.seek(begin)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    begin += len(line)
                    said = _read(line) or {}
                    if "entry" in said and "scene" in said:
                        copied.last[str(said["scene"])] = str(said["entry"])
            copied.sizes[path.name] = begin
        return copied

    def _remembered(self) -> _Copied:
        with suppress(FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            told = orjson.loads((self._folder / ".copied.json").read_bytes())
            return _Copied(
                {str(name): int(size) for name, size in told["sizes"].items()},
                {str(scene): str(entry) for scene, entry in told["last"].items()},
                {str(scene): (str(a), str(b)) for scene, (a, b) in told.get("looked", {}).items()},
            )
        return _Copied()

    def _remember(self, copied: _Copied) -> None:
        """Spare the next look the reading; what is not remembered is read again."""
        half = self._folder / ".copied.json.tmp"
        half.write_bytes(orjson.dumps(vars(copied)))
        half.replace(self._folder / ".copied.json")

    def _entries(self, scene: str) -> set[str]:
        lines = read(self._folder.parent)
        return {str(line["entry"]) for line in lines if line.get("scene") == scene
                and "entry" in line}  # fmt: skip


def read(root: Path, *, task_id: str | None = None) -> Iterator[dict[str, Any]]:
    """Return the lines below the output folder ``root``, oldest first.

    ``task_id``: only those about this task. What a crash cut off is passed over. Raises
    `StoreError` when they cannot be read.
    """
    wanted = None if task_id is None else orjson.dumps(task_id)
    path = folder = root / "audit"
    try:
        for path in _months(folder):
            with path.open("rb") as file:
                for line in file:
                    if wanted is not None and wanted not in line:
                        continue
                    said = _read(line)
                    if said is not None and task_id in (None, said.get("task_id")):
                        yield said
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror}") from None


def latest(root: Path, *, task_id: str | None = None) -> dict[str, dict[str, Any]]:
    """Return the last line on each approval, or attempt of a cancelled unit, by its id.

    In the order they were said; without what people asked for, which is not what came of it.
    ``task_id`` and errors as in `read`.
    """
    found: dict[str, dict[str, Any]] = {}
    for line in read(root, task_id=task_id):
        about = line.get("approval_id")
        if about is None and line.get("decision") == "cancelled":
            about = line.get("attempt_id")
        if about and "entry" in line:
            found.pop(str(about), None)
            found[str(about)] = line
    return found


async def _page(server: Server, stream: str, low: str) -> list[Row]:
    rows: Any = await server.persist(lambda: server.client.xrange(stream, min=low, count=_PAGE))
    return [(entry.decode(), fields) for entry, fields in rows]


async def _newest(server: Server, stream: str) -> str | None:
    rows: Any = await server.run("XREVRANGE", stream, "+", "-", "COUNT", 1)
    return rows[0][0].decode() if rows else None


async def _trimmed(server: Server, stream: str) -> bool:
    """Did the stream ever hold more than it holds now?"""
    told: Any = await server.persist(lambda: server.client.xinfo_stream(stream))
    return int(told["entries-added"]) > int(told["length"])


def _gap(scene: str, last: str, entry: str) -> dict[str, Any]:
    """The line that says: between these two, decisions may be missing."""
    return {"scene": scene, "gap": True, "from": last, "to": entry, "at": round(time.time(), 3)}


def _line(scene: str, entry: str, fields: dict[bytes, bytes]) -> dict[str, Any]:
    def text(name: bytes) -> str:
        return fields.get(name, b"").decode(errors="replace")

    record = _read(fields.get(b"p", b""))
    ours = {
        "scene": scene, "entry": entry, "task_id": text(b"id"), "unit": text(b"u"),
        "decision": text(b"decision"),
    }  # fmt: skip
    more = {"record": text(b"p")} if record is None else record
    return {**ours, **{name: value for name, value in more.items() if name not in ours}}


def _read(line: bytes) -> dict[str, Any] | None:
    with suppress(ValueError):
        said = orjson.loads(line)
        return said if isinstance(said, dict) else None
    return None


def _months(folder: Path) -> list[Path]:
    # Not glob: it takes a folder that cannot be read for an empty one.
    with suppress(FileNotFoundError):
        return sorted(path for path in folder.iterdir() if path.match("decisions-????-??.jsonl"))
    return []


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    more = 0 if flags & os.O_DIRECTORY else os.O_CREAT
    file = os.open(path, flags | more | os.O_CLOEXEC, 0o640)
    try:
        yield file
    finally:
        os.close(file)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
