"""Logs: one JSON object a line, each with the id of the request it belongs to.

What may be logged is decided by the caller; this module never adds a path, a header, a body or the text of an
unexpected exception, because those can hold tokens, learner ids and event data.
"""

import logging
import sys
import time
from contextvars import ContextVar
from traceback import extract_tb
from typing import Final, TextIO

import msgspec

from pisync_common.errors import PiSyncError

REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""The id of the request being answered; empty outside of one."""

TRACE: Final[ContextVar[str]] = ContextVar("trace", default="")
"""The id of the trace that the request belongs to; empty where its caller named none."""

_FIELDS: Final = "pisync_fields"
_encode = msgspec.json.Encoder(enc_hook=str).encode


def fields(**values: object) -> dict[str, object]:
    """The `extra` of a log call: `log.info("text", extra=fields(device="pibook-1"))`."""
    return {_FIELDS: values}


def told(logger: logging.Logger, message: str, values: dict[str, object]) -> None:
    """`logger.info` for the one line that every request has: without the search for the caller's file and line,
    which no line shows, at half the cost. The caller has asked `isEnabledFor`."""
    record = logging.LogRecord(logger.name, logging.INFO, "", 0, message, (), None)
    record.__dict__[_FIELDS] = values
    logger.handle(record)


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "message", "request_id"?, "trace_id"?, ...fields, "error"?, "trace"?}`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": _time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        if trace := TRACE.get():
            line["trace_id"] = trace
        line |= record.__dict__.get(_FIELDS, {})
        if record.exc_info and record.exc_info[1]:
            line |= _failure(record.exc_info[1])
        return _encode(line).decode()


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send every logger of this process, the server's own included, to `stream` (standard error) as JSON lines."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # no line shows them
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"  # it would log query strings


def _time(seconds: float) -> str:
    whole = int(seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((seconds - whole) * 1000):03d}Z"


def _failure(error: BaseException) -> dict[str, object]:
    # Our own texts are written for a reader and hold no data; anybody else's may quote the value it choked on.
    name = type(error).__name__
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in extract_tb(error.__traceback__)]
    return {"error": f"{name}: {error}" if isinstance(error, PiSyncError) else name, "trace": frames}
