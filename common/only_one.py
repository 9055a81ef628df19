"""Lets one process of a host at a time do something in a folder."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.failures import ConfigurationError


@contextmanager
def only_one(
    lock: Path, *, patience: float, waiting: Callable[[], None] = lambda: None
) -> Iterator[int]:
    """Hold a lock in the folder; ``waiting`` is told of a wait, which has ``patience`` seconds.

    Yields its descriptor. The kernel frees the lock when all who have it are dead: programs that
    write into the folder may get it too, as they outlive a killed holder for a while. Raises
    `ConfigurationError` when the wait was in vain.
    """
    deadline = time.monotonic() + patience
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"another process is still at work in {lock.parent} after {patience:.0f} s"
                    ) from None
                waiting()
                time.sleep(0.2)
        yield file.fileno()
