"""The last of what a command complains about, however much that is."""

from __future__ import annotations

import asyncio
import os

KEPT = 1 << 16
"""Bytes."""
PIPE = 1 << 16
"""Bytes that a pipe holds, and that are taken from it at once."""


class Tail:
    """A pipe into which a command writes, drained as it fills: a full one would stop the command.

    Whoever made it closes it. Raises `OSError` where no descriptors are left.
    """

    def __init__(self) -> None:
        self._kept = bytearray()
        self._loop = asyncio.get_running_loop()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        self._loop.add_reader(self._reading, self._drain)

    @property
    def writing(self) -> int:
        """The descriptor that the command gets."""
        return self._writing

    def handed_over(self) -> None:
        """Keep no writing end here: what ends with the command has an end."""
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1

    def text(self) -> str:
        """Return the last words, those included that have just been written."""
        self._drain()
        return self._kept.decode("utf-8", "replace").strip()[-1000:]

    def close(self) -> None:
        """Listen no more; idempotent."""
        self.handed_over()
        if self._reading >= 0:
            self._loop.remove_reader(self._reading)
            os.close(self._reading)
            self._reading = -1

    def _drain(self) -> None:
        if self._reading < 0:
            return
        try:
            part = os.read(self._reading, PIPE)
        except BlockingIOError:
            return
        if not part:
            self.close()
            return
        self._kept += part
        del self._kept[:-KEPT]
