"""The service's log: lines on standard error, with levels where the journal reads them.

Of an unexpected error the type and the traceback's lines are logged, never its text: that may quote what a learner did,
or a token.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping
from traceback import extract_tb
from types import TracebackType
from typing import TextIO

from pisync_common.errors import PiSyncError

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}

Caught = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class PlainFormatter(logging.Formatter):
    """`2026-11-23T10:00:00Z WARNING text`."""

    def __init__(self, text: str = "%(asctime)s %(levelname)s %(message)s") -> None:
        super().__init__(text)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - logging's name
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))

    def formatException(self, ei: Caught) -> str:  # noqa: N802 - logging's name
        kind, error, trace = ei
        if kind is None:
            return ""
        text = f": {error}" if isinstance(error, PiSyncError) else ""
        frames = [f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in extract_tb(trace)]
        return "\n".join([f"{kind.__name__}{text}", *frames])


class JournalFormatter(PlainFormatter):
    """`<4>text`: the journal adds the time, and takes the level from the number, which each line has."""

    def __init__(self) -> None:
        super().__init__("%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def configure(level: str, *, stream: TextIO | None = None, environ: Mapping[str, str] = os.environ) -> None:
    """Send every logger of this process to `stream` (standard error), but for httpx's lines about each request."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JournalFormatter() if environ.get("JOURNAL_STREAM") else PlainFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.WARNING)
