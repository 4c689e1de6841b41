"""Logs: one JSON object a line, each with the id of the request it belongs to.

What may be logged is decided by the caller; this module never adds a path, a header, a body or the text of an
unexpected exception, because those can hold tokens, learner ids and event data.
"""

import contextlib
import json
import logging
import re
import sys
from contextvars import ContextVar
from traceback import extract_tb
from typing import Final, TextIO

import msgspec

from pisync_common.errors import PiSyncError
from pisync_common.times import format_ms

REQUEST: Final[ContextVar[tuple[str, str | None]]] = ContextVar("request", default=("", None))
"""The id of the request being answered, empty outside of one, and of the trace it belongs to."""

_FIELDS: Final = "pisync_fields"
_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-"  # version and trace
    rb"(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"  # span and flags
)
_FIRST_VERSION: Final = b"00-"
_LENGTH: Final = 55
encode = msgspec.json.Encoder(enc_hook=str).encode


def fields(**values: object) -> dict[str, object]:
    """Return the `extra` of a log call: `log.info("text", extra=fields(device="pibook-1"))`."""
    return {_FIELDS: values}


def trace_of(header: bytes) -> str | None:
    """Return the trace id of a `traceparent` header (W3C Trace Context); None if it is not a valid one."""
    if len(header) < _LENGTH or (header.startswith(_FIRST_VERSION) and len(header) != _LENGTH):
        return None  # later versions may say more, version 00 does not
    found = _TRACEPARENT.fullmatch(header)
    return None if found is None else found[1].decode()


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", "request_id"?, "trace_id"?, ...fields, "error"?, "trace"?}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": format_ms(int(record.created * 1000)),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id, trace = REQUEST.get()
        if request_id:
            line["request_id"] = request_id
        if trace:
            line["trace_id"] = trace
        line |= record.__dict__.get(_FIELDS, {})
        if record.exc_info and record.exc_info[1]:
            line |= _failure(record.exc_info[1])
        try:
            return encode(line).decode()
        except UnicodeEncodeError:  # a path whose bytes are not text
            return json.dumps(line, default=str)


class JsonLines(logging.StreamHandler[TextIO]):
    """Writes log records at once, and the access lines of requests together.

    Access lines are appended to `pending` on the event loop; they are written before the next record, by `flush`, and
    at the end of the process.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.setFormatter(JsonFormatter())
        self.pending: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._write_pending()
        super().emit(record)

    def flush(self) -> None:
        # A log that cannot be written must not stop answers.
        with self.lock, contextlib.suppress(OSError):  # type: ignore[union-attr]
            self._write_pending()
            super().flush()

    def _write_pending(self) -> None:
        if count := len(self.pending):  # lines may be appended meanwhile, from another thread
            lines = self.pending[:count]
            del self.pending[:count]
            with contextlib.suppress(OSError):
                self.stream.write("\n".join(lines) + "\n")


def configure(level: str, stream: TextIO | None = None) -> JsonLines:
    """Send every logger of this process, the server's own included, to `stream` (standard error) as JSON lines."""
    handler = JsonLines(stream or sys.stderr)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # it would log query strings
    if level != "debug":
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # its routine messages repeat ours
    return handler


def _failure(error: BaseException) -> dict[str, object]:
    # Our own texts are written for a reader and hold no data; those of other libraries may quote a value.
    name = type(error).__name__
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in extract_tb(error.__traceback__)]
    return {"error": f"{name}: {error}" if isinstance(error, PiSyncError) else name, "trace": frames}
