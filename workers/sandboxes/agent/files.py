"""Files inside the sandbox, for the worker: nothing here can block, or leave a half-made file."""

from __future__ import annotations

import os
import stat

MAX_ENTRIES = 10_000  # in one listing: with the longest names, what a reply can hold


class Refused(Exception):
    """A path the program has no right to, or that is not what it should be; told to the worker."""


def read_file(path: str, limit: int) -> bytes:
    """Return a regular file's content; nothing else can be opened, so nothing can block."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _refused(path, error) from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Refused(f"{path}: not a regular file")
        parts: list[bytes] = []
        size = 0
        while size <= limit:  # the size in stat may be 0 (in /proc) or change
            part = os.read(fd, min(1 << 20, limit + 1 - size))
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
        raise Refused(f"{path}: larger than {limit} bytes")
    except MemoryError:
        raise Refused(f"{path}: not enough memory to read it") from None
    except OSError as error:
        raise _refused(path, error) from None
    finally:
        os.close(fd)


def write_file(path: str, data: bytes | bytearray, mode: int) -> None:
    """Replace a file at once or not at all; a link at its place is replaced, never followed."""
    if os.path.basename(path) in ("", ".", ".."):  # noqa: PTH119
        raise Refused(f"{path}: not a file name")
    folder = os.path.dirname(path)  # noqa: PTH120
    draft = os.path.join(folder, f".fleet-{os.urandom(8).hex()}")  # noqa: PTH118
    try:
        if folder:
            os.makedirs(folder, 0o755, exist_ok=True)  # noqa: PTH103
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC)
    except RecursionError:
        raise Refused(f"{path[:100]}...: too deep") from None
    except (OSError, ValueError) as error:
        raise _refused(path, error) from None
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, mode & 0o7777)
        os.rename(draft, path)  # noqa: PTH104
    except (OSError, ValueError) as error:
        try:  # noqa: SIM105
            os.unlink(draft)  # noqa: PTH108
        except OSError:
            pass  # a program was quicker
        raise _refused(path, error) from None
    finally:
        os.close(fd)


def list_dir(path: str) -> list[tuple[str, str, int]]:
    """Return (name, kind, size) of each entry, sorted by name."""
    entries: list[tuple[str, str, int]] = []
    try:
        with os.scandir(path) as found:
            for entry in found:
                info = entry.stat(follow_symlinks=False)
                name = os.fsencode(entry.name).decode("utf-8", "backslashreplace")
                if len(entries) == MAX_ENTRIES:
                    raise Refused(f"{path}: more than {MAX_ENTRIES} entries")
                entries.append((name, _kind(info.st_mode), info.st_size))
    except (OSError, ValueError) as error:
        raise _refused(path, error) from None
    return sorted(entries)


def _refused(path: str, error: Exception) -> Refused:
    return Refused(f"{path}: {getattr(error, 'strerror', None) or error}")


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "dir"
    return "symlink" if stat.S_ISLNK(mode) else "other"
