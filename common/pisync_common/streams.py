"""The standard streams of both programs: a stream that is closed, full or not UTF-8 is no reason to fail.

- A closed stream is /dev/null. Otherwise the next file that is opened, such as a database, would take its number and
  receive what is printed.
- A character that the locale cannot encode, or a byte that is not text, is printed as `\\uXXXX`: JSON stays JSON.
- Standard output that cannot be written raises OutputFailed, never OSError: a command can tell it from a fault of its
  store or its socket. What cannot be written to standard error is dropped.
"""

import codecs
import errno
import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any, Final, TextIO

FAILED: Final = 1
INTERRUPTED: Final = 130
"""The exit code after Ctrl-C, as shells give it."""
_ESCAPE: Final = "pisync.escape"


class OutputFailed(Exception):
    """Standard output cannot be written: its disk is full, or its reader has gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror or str(error))
        self.reader_left: Final = error.errno == errno.EPIPE


def run(program: str, main: Callable[[], int]) -> int:
    """Run `main` with usable streams; return its exit code, or FAILED if the output could not be written.

    Ctrl-C ends it with INTERRUPTED, also while modules are imported.
    """
    prepare()
    try:
        code = _exit_code(main)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except OutputFailed as error:
        discard_output()
        if not error.reader_left:
            print(f"{program}: the output cannot be written ({error}); what the command did is done", file=sys.stderr)
        return FAILED


def prepare() -> None:
    """Replace the standard streams, once, before anything is opened or printed."""
    codecs.register_error(_ESCAPE, _escape)
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the life of the process
    sys.stdout = _text(_Output(1, "wb", closefd=False), sys.stdout, line_buffering=os.isatty(1))
    sys.stderr = _text(_Messages(2, "wb", closefd=False), sys.stderr, line_buffering=True)


def discard_output() -> None:
    """Send what is still buffered, and all later output, to /dev/null."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


class _Output(io.FileIO):
    """Raises OutputFailed. Waits where a parent has made the pipe non-blocking."""

    def write(self, data: Any, /) -> int:
        while True:
            try:
                written: int | None = super().write(data)
            except OSError as error:
                raise OutputFailed(error) from error
            if written is not None:
                return written
            select.select([], [self], [])


class _Messages(io.FileIO):
    """Drops what cannot be written."""

    def write(self, data: Any, /) -> int:
        try:
            written: int | None = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written


def _text(raw: io.FileIO, before: TextIO | None, *, line_buffering: bool) -> io.TextIOWrapper:
    encoding = None if before is None else before.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, _ESCAPE, line_buffering=line_buffering)


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)), error.end


def _exit_code(main: Callable[[], int]) -> int:
    try:
        return main()
    except SystemExit as ended:  # argparse's own way out
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
