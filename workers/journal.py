"""The model answers a unit of work has paid for, kept in Redis until one of its attempts commits.

A hash per unit, field → answer: the field is the sha256 of the exact request, so an answer is only
ever given again to the very question it was an answer to. The call that commits the attempt
deletes the hash; until then it lets whoever takes the work over go on where a killed worker was.
"""

from __future__ import annotations

import zlib

from pydantic import TypeAdapter, ValidationError
from redis.exceptions import ResponseError

from common.logs import logger
from common.model import explain
from common.queue.scene_queue import SceneQueue
from workers.policies.base import Turn

log = logger("journal")

MAX_ANSWER = 256 << 10
"""Bytes of one answer as JSON. A larger one is not kept: asking again is cheaper than carrying it
through the queue server's memory."""
MAX_UNIT = 4 << 20
"""Bytes of all answers of a unit, as stored."""
_BIG = 16 << 10
"""Bytes from which an answer is compressed."""

_TURN = TypeAdapter(Turn)


class Journal:
    """The answers of one unit of work, as one attempt at it reads and adds to them.

    Waits for an absent server as everything does (`Server.persist`). Never an error otherwise: what
    cannot be kept or read is asked again.
    """

    def __init__(self, queue: SceneQueue, task_id: str, unit: str) -> None:
        self._server = queue.server
        self._key = queue.keys.journal(task_id, unit)
        self._ledger = queue.keys.ledger(task_id)
        self._unit = unit
        self._ttl_ms = queue.ttl_ms
        self._rows: dict[str, bytes] | None = None
        self._bytes = 0
        self._closed = False

    async def find(self, request: str) -> Turn | None:
        """Return the answer an earlier attempt got to this request; None if there is none."""
        if self._rows is None:
            self._rows = await self._read()
        row = self._rows.pop(request, None)  # a chat only grows: nothing is asked for twice
        if row is None:
            return None
        try:
            return unpack(row)
        except ValueError as error:
            log.warning("journal.damaged", key=self._key, request=request, error=str(error))
            return None

    async def keep(self, request: str, turn: Turn) -> None:
        """Return once the answer would outlive this process."""
        row = pack(turn)
        if row is None or self._closed:
            return
        if self._bytes + len(row) > MAX_UNIT:
            self._close(f"{MAX_UNIT} bytes of answers are kept, more are not")
            return
        self._bytes += len(row)
        try:
            kept = await self._server.fcall(
                "keep", (self._key, self._ledger), (self._unit, request, row, self._ttl_ms)
            )
        except ResponseError as error:
            self._close(str(error)[:200])
        else:
            if not kept:
                self._close("the unit has ended: another consumer committed it")

    async def _read(self) -> dict[str, bytes]:
        try:
            flat = await self._server.fcall("recall", (self._key,), ())
        except ResponseError as error:
            self._close(str(error)[:200])
            return {}
        self._bytes = sum(map(len, flat[1::2]))
        fields = (field.decode("ascii", "replace") for field in flat[::2])
        return dict(zip(fields, flat[1::2], strict=True))

    def _close(self, why: str) -> None:
        if not self._closed:
            log.warning("journal.closed", key=self._key, reason=why)
        self._closed = True


def pack(turn: Turn) -> bytes | None:
    """Return an answer as stored; None where it is too big, or is nothing JSON can hold.

    A letter for the encoding, a checksum of the JSON (4 bytes), and the JSON.
    """
    try:
        raw = _TURN.dump_json(turn, exclude_defaults=True)
    except ValueError:  # half a surrogate pair
        return None
    if len(raw) > MAX_ANSWER:
        return None
    head = zlib.crc32(raw).to_bytes(4)
    return b"z" + head + zlib.compress(raw, 1) if len(raw) > _BIG else b"j" + head + raw


def unpack(row: bytes) -> Turn:
    """Return the answer in a row. Raises `ValueError` for anything that is none."""
    raw = row[5:]
    if row[:1] == b"z":
        reader = zlib.decompressobj()
        try:
            raw = reader.decompress(raw, MAX_ANSWER)
        except zlib.error as error:
            raise ValueError(f"not zlib: {error}") from None
    if row[1:5] != zlib.crc32(raw).to_bytes(4):
        raise ValueError("its checksum is another")
    try:
        return _TURN.validate_json(raw)
    except ValidationError as error:
        # Not its own words: they quote the answer, which has no place in a log.
        fields = ", ".join(name for name, _ in explain(error))
        raise ValueError(f"no answer: {fields}"[:200]) from None
