"""JSON lines on stderr: what happened, to which task, and never a secret or an observation."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from typing import IO, Any, BinaryIO, cast

import orjson
import structlog
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, WrappedLogger

_SECRET_KEY = re.compile(r"(api[_-]?key|authorization|password|secret|token)$", re.IGNORECASE)
_SECRET_TEXT = re.compile(
    r"(\bsk-[\w-]{8,}|\bAIza[\w-]{30,}|Bearer\s+[\w.~+/-]{8,}|://[^\s/@:]*:[^\s/@]+@)"
)


def _redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    return {key: _clean(key, value) for key, value in event.items()}


def _clean(key: str, value: Any) -> Any:
    """Return ``value`` as JSON can hold it, and nothing in it that is secret."""
    if _SECRET_KEY.search(key):
        return "[redacted]"
    match value:
        case None | bool() | float():
            return value
        case int() if -(2**63) <= value < 2**63:
            return value
        case dict():
            return {str(k): _clean(str(k), v) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_clean("", item) for item in value]
        case _:
            # Half a surrogate pair, which models do write, is no UTF-8.
            return scrub(str(value)).encode("utf-8", "replace").decode()


def scrub(text: str) -> str:
    """Return ``text`` without anything that looks like a key or a password in a URL."""
    return _SECRET_TEXT.sub("[redacted]", text)


class _Patient:
    """A stream whose writer outlives a full disk: a lost line must not cost the work."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(data)
        return len(data)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def configure(level: str, *, service: str, **bound: Any) -> None:
    """Set logging up for this process; every line carries ``service`` and ``bound``."""
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service, **bound)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
            # Local variables may hold keys and prompts: they stay out of tracebacks.
            structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
            _redact,
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(cast("BinaryIO", _Patient(sys.stderr.buffer))),
        cache_logger_on_first_use=False,
    )


def logger(name: str) -> Any:
    """Return a logger; events are dotted and stable: `attempt.finished`."""
    return structlog.get_logger(part=name)
