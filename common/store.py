"""Where attempts, reviews and blobs lie: written once, whole, durable, and found again.

trajectories/<task_id>/<attempt_id>.json          one attempt, never changed
trajectories/<task_id>/<attempt_id>.review.json   makes it visible to exporters
trajectories/<task_id>/<attempt_id>.rescore.<name>.json   another rubric's review, beside the first
trajectories/<task_id>/<attempt_id>.label.<person>.json   what a person says of it
blobs/<sha256[:2]>/<sha256>.<ext>                 screenshots, results over 16 KiB
rejected.jsonl                                    lines of tasks files that were refused
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import orjson
from pydantic import ValidationError

from common.failures import ConfigurationError
from common.logs import logger
from common.model import explain
from common.review import Label, Review
from common.trajectory import Blob, Trajectory

log = logger("store")

BLOB_FROM = 16 << 10
"""Text results longer than this many bytes are kept as blobs, with a cut view in the message."""
_REVIEW = ".review.json"
_HALF_WRITTEN = 86_400.0
"""Seconds after which nobody writes on a temporary file any more."""
_PROBLEMS = 3
"""So many of those that a file has are named."""
_ATTEMPT = re.compile(r"r(\d+)-s(\d+)-(\d+)-(\d+)-d(\d+)-\w+")
"""Revision, sample, the two halves of the stream entry's id, delivery: `r1-s0-1700-0-d1-ab`."""


class StoreError(Exception):
    """The store cannot be written or read; the message says where and why."""


class Damaged(StoreError):
    """One file is missing, or not what it should be; the store itself is well."""


@dataclass(frozen=True)
class Reviewed:
    """One attempt and what the reviewer says of it."""

    trajectory: Trajectory
    review: Review


class Store:
    """A local folder. All writes are atomic and durable: temporary file, fsync, rename."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # -- writing -----------------------------------------------------------------------------

    def prove_writable(self) -> None:
        """Write and remove a file. Raises `StoreError` saying what to do."""
        probe = self.root / f".probe-{secrets.token_hex(4)}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with probe.open("wb") as file:
                file.write(b"\0" * 65_536)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(_hint(self.root, error)) from None
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()

    def write_attempt(self, trajectory: Trajectory) -> str:
        """Keep one attempt; returns the sha256 of its file."""
        data = orjson.dumps(
            trajectory.model_dump(mode="json", by_alias=True), option=orjson.OPT_INDENT_2
        )
        self.put(self.attempt_path(trajectory.task_id, trajectory.attempt_id), data)
        return hashlib.sha256(data).hexdigest()

    def write_review(self, review: Review) -> None:
        """Keep a review. One of a later delivery stays: a reviewer that comes late changes nothing.
        One of an earlier delivery was never settled, or this one could not be under way."""
        with contextlib.suppress(StoreError):
            there = self.read_review(review.task_id, review.attempt_id)
            if there is not None and there.delivery > review.delivery:
                return
        data = orjson.dumps(
            review.model_dump(mode="json", by_alias=True), option=orjson.OPT_INDENT_2
        )
        self.put(self.review_path(review.task_id, review.attempt_id), data)

    def write_rescore(self, review: Review, name: str) -> Path:
        """Keep what another rubric (``name``) says of an attempt; the review stays as it is."""
        path = self._within(
            "trajectories", review.task_id, f"{review.attempt_id}.rescore.{_plain(name)}.json"
        )
        data = review.model_dump(mode="json", by_alias=True)
        self.put(path, orjson.dumps(data, option=orjson.OPT_INDENT_2))
        return path

    def write_label(self, label: Label) -> None:
        """Keep what a person says of an attempt; saying it again replaces it."""
        # Two names may look alike once they are plain; their hash tells them apart.
        person = f"{_plain(label.by)[:40]}-{hashlib.sha256(label.by.encode()).hexdigest()[:8]}"
        path = self._within(
            "trajectories", label.task_id, f"{label.attempt_id}.label.{person}.json"
        )
        self.put(path, orjson.dumps(label.model_dump(mode="json"), option=orjson.OPT_INDENT_2))

    def put(self, path: Path, data: bytes) -> None:
        """Keep a file of the store, in the place of what was there. Raises `StoreError`."""
        temporary = path.with_name(f".{path.name[:80]}.{secrets.token_hex(6)}.tmp")
        try:
            try:
                with _made(temporary) as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
            # The file's name is durable only once its folder is.
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise StoreError(_hint(path, error)) from None

    def put_blob(self, data: bytes, *, media_type: str, ext: str) -> Blob:
        """Keep bytes under their own hash; the same bytes are kept once."""
        digest = hashlib.sha256(data).hexdigest()
        blob = Blob(sha256=digest, media_type=media_type, bytes=len(data), ext=ext)
        path = self.blob_path(blob)
        if not path.exists():
            self.put(path, data)
        return blob

    def discard_attempt(self, task_id: str, attempt_id: str) -> None:
        """Remove what was written under a lease that was lost before its commit."""
        self.attempt_path(task_id, attempt_id).unlink(missing_ok=True)

    def sweep(self, task_id: str, committed: str, *, scene: str) -> list[str]:
        """Remove what other leases on the same entry as ``committed`` left; returns their ids.

        ``committed`` ended its entry, with whatever outcome, and an entry ends with the one commit
        it allows: the others never committed anything, nor can they still. Their half-written
        files go with them, and those of anybody once they are a day old. What other entries led
        to stays: evidence of retries. Nothing depends on a sweep: what fails is logged.
        """
        found = _ATTEMPT.fullmatch(committed)
        if found is None:
            return []
        entry, ours = committed[: found.start(5)], f".{committed}."
        try:
            folder = self._within("trajectories", task_id)
            # By name, before anything is looked at: a task of many samples has many files.
            with os.scandir(folder) as files:
                names = [f.name for f in files if f.name.startswith((entry, "."))]
            others = sorted(n.removesuffix(".json") for n in names if n.endswith(".json"))
            lost = [
                other
                for other in others
                if other != committed
                and _ATTEMPT.fullmatch(other)
                and not self.review_path(task_id, other).exists()
                and self._is_of(scene, task_id, other)
            ]
            for attempt_id in lost:
                self.discard_attempt(task_id, attempt_id)
            for half in (folder / n for n in names if n[0] == "." and n.endswith(".tmp")):
                theirs = half.name.startswith(f".{entry}") and not half.name.startswith(ours)
                with contextlib.suppress(FileNotFoundError):
                    if theirs or time.time() - half.stat().st_mtime > _HALF_WRITTEN:
                        half.unlink()
        except FileNotFoundError:
            return []  # no attempt at this task was ever written
        except (OSError, StoreError) as error:
            log.warning("store.unswept", task_id=task_id, error=str(error)[:500])
            return []
        return lost

    def _is_of(self, scene: str, task_id: str, attempt_id: str) -> bool:
        """Two scenes may have tasks of one name, and entries of one id."""
        try:
            return self.read_attempt(task_id, attempt_id).assignment.task.scene == scene
        except StoreError:
            return False

    # -- reading -----------------------------------------------------------------------------

    def attempt_path(self, task_id: str, attempt_id: str) -> Path:
        return self._within("trajectories", task_id, attempt_id + ".json")

    def review_path(self, task_id: str, attempt_id: str) -> Path:
        return self._within("trajectories", task_id, attempt_id + _REVIEW)

    def blob_path(self, blob: Blob) -> Path:
        return self._within("blobs", blob.sha256[:2], f"{blob.sha256}.{blob.ext}")

    def _within(self, *parts: str) -> Path:
        """Join names below the root; nothing that data says may lead out of it."""
        for part in parts:
            if part in ("", ".", "..") or "/" in part or "\0" in part:
                raise StoreError(f"not a file name: {part!r}")
        return self.root.joinpath(*parts)

    def read_attempt(
        self, task_id: str, attempt_id: str, *, sha256: str | None = None
    ) -> Trajectory:
        """Return an attempt; with ``sha256``, only if its file is the very one.

        Raises `Damaged` when it is missing or not what it should be.
        """
        path = self.attempt_path(task_id, attempt_id)
        try:
            data = path.read_bytes()
            if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
                raise Damaged(f"{path} is not the file that was committed: its sha256 differs")
            return Trajectory.model_validate_json(data)
        except FileNotFoundError as error:
            raise Damaged(_hint(path, error)) from None
        except OSError as error:
            raise StoreError(_hint(path, error)) from None
        except ValidationError as error:
            raise Damaged(_not_a("trajectory", path, error)) from None

    def read_review(self, task_id: str, attempt_id: str) -> Review | None:
        path = self.review_path(task_id, attempt_id)
        try:
            return Review.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Damaged(_hint(path, error)) from None
        except ValidationError as error:
            raise Damaged(_not_a("review", path, error)) from None

    def labels_of(
        self, task_id: str, attempt_id: str, *, damaged: Callable[[str], object] | None = None
    ) -> list[Label]:
        """Return what people said of an attempt, in the order they said it.

        Raises `Damaged` at the first that is none; with ``damaged``, tells it of each and goes on.
        """
        folder = self._within("trajectories", task_id)
        start = f"{attempt_id}.label."
        found = []
        try:
            with os.scandir(folder) as files:
                paths = [Path(f.path) for f in files if f.name.startswith(start)]
        except FileNotFoundError:
            return []
        for path in paths:
            try:
                found.append(Label.model_validate_json(path.read_bytes()))
            except OSError as error:
                trouble = _hint(path, error)
            except ValidationError as error:
                trouble = _not_a("label", path, error)
            else:
                continue
            if damaged is None:
                raise Damaged(trouble)
            damaged(trouble)
        return sorted(found, key=lambda label: (label.at, label.by))

    def attempts_of(self, task_id: str) -> list[str]:
        """Ids of a task's attempts, reviewed or not, oldest first."""
        folder = self._within("trajectories", task_id)
        if not folder.is_dir():
            return []
        found = (_ATTEMPT.fullmatch(p.stem) for p in folder.iterdir() if p.suffix == ".json")
        by_age = sorted((tuple(int(n) for n in m.groups()), m[0]) for m in found if m)
        return [attempt_id for _, attempt_id in by_age]

    def tasks(self) -> list[str]:
        """Ids of all tasks with a folder, in the order of their names."""
        folder = self.root / "trajectories"
        if not folder.is_dir():
            return []
        with os.scandir(folder) as entries:
            return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))

    def reviewed(self, damaged: Callable[[str], object] | None = None) -> Iterator[Reviewed]:
        """Every reviewed attempt, in a fixed order, one in memory at a time.

        A damaged file costs itself only: ``damaged`` is told, or else the log; it is passed over.
        """
        for task_id in self.tasks():
            for attempt_id in self.attempts_of(task_id):
                try:
                    review = self.read_review(task_id, attempt_id)
                    if review is not None:
                        yield Reviewed(self.read_attempt(task_id, attempt_id), review)
                except StoreError as error:
                    if damaged is None:
                        log.error("store.damaged", error=str(error)[:500])
                    else:
                        damaged(str(error))


def _made(path: Path) -> BinaryIO:
    """Open a new file, and make the folder it lies in where it is the first one there."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")


def _plain(name: str) -> str:
    """Return a name that any file system takes, and that leads nowhere."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:80] or "-"


def open_store(root: Path) -> Store:
    """Return the store at ``root``, proved writable. Raises `ConfigurationError`."""
    store = Store(root)
    try:
        store.prove_writable()
    except StoreError as error:
        raise ConfigurationError(f"FLEET_OUTPUT: {error}") from None
    return store


def _not_a(what: str, path: Path, error: ValidationError) -> str:
    """Say what is wrong with a file, and nothing of what is in it."""
    found = explain(error)
    told = [why if field == "(line)" else f"{field}: {why}" for field, why in found[:_PROBLEMS]]
    more = len(found) - len(told)
    return f"{path} is not a {what}: " + "; ".join(told) + (f"; and {more} more" if more else "")


def _hint(path: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno == errno.ENOSPC:
        return f"{path}: the disk is full; free some space and work goes on by itself"
    if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
        return f"{path}: {reason}; make it writable for this user, or set FLEET_OUTPUT elsewhere"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{path}: a file is in the way ({reason}); move it, or set FLEET_OUTPUT elsewhere"
    return f"{path}: {reason}"
