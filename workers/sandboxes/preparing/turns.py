"""Lets one process at a time prepare a folder."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from common.failures import ConfigurationError

PATIENCE = 1800.0
"""Seconds to wait for another process."""


@contextmanager
def only_one(lock: Path, waiting: Callable[[], None]) -> Iterator[int]:
    """Hold a lock while preparing; ``waiting`` is told of a wait.

    Yields its descriptor. The kernel frees the lock when all who have it are dead: programs that
    write into the folder get it too, as they may outlive a killed preparer for a while.
    """
    deadline = time.monotonic() + PATIENCE
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"another process still prepares {lock.parent} after {PATIENCE:.0f} s"
                    ) from None
                waiting()
                time.sleep(0.2)
        yield file.fileno()
