"""A list as a file: `--format` and `--output` of every command that lists something."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final, TextIO

from pisync_receiver.commands.client import Api
from pisync_receiver.errors import WrongUsage

FORMATS: Final = ("csv", "ndjson", "parquet")
_LINE_ENDS: Final = {"csv": b"\r\n", "ndjson": b"\n"}
_SHOWN_EVERY_S: Final = 0.5


def format_of(given: str | None, output: Path | None) -> str | None:
    """Return the format of an export, by its name or the file's; None if none is wanted. Raises WrongUsage."""
    if given is not None or output is None:
        return given
    if (suffix := output.suffix.removeprefix(".").lower()) in FORMATS:
        return suffix
    raise WrongUsage(f"--output {output}: say --format, or end the name in .{', .'.join(FORMATS)}")


class Progress:
    """Shows on a terminal how much has come."""

    def __init__(self, out: TextIO, line_end: bytes | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.bytes = 0
        self.total: int | None = None
        """How many rows there are, if the receiver says so."""
        self._rows = 0
        self._out = out if out.isatty() else None
        self._line_end = line_end
        self._clock = clock
        self._shown = clock()

    def add(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        if self._line_end is not None:
            self._rows += chunk.count(self._line_end)
        if self._out is not None and self._clock() >= self._shown + _SHOWN_EVERY_S:
            self._shown = self._clock()
            print(f"\r{self}", end="", file=self._out, flush=True)

    def end(self) -> None:
        if self._out is not None:
            print("\r\x1b[K", end="", file=self._out, flush=True)

    def __str__(self) -> str:
        size = f"{self.bytes / 1e6:,.1f} MB"
        if self._line_end is None or self.total is None:
            return size
        return f"{size}, {min(self._rows, self.total):,} of {self.total:,} rows"


def save(api: Api, path: str, query: Mapping[str, Any], output: Path, progress: Progress) -> None:
    """Write an export into a file, which is there once it is complete. Raises what `Api.export` raises, OSError."""
    part = output.with_name(output.name + ".part")
    try:
        with part.open("wb") as file:
            _copy(api, path, query, file, progress)
        part.replace(output)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def print_to(api: Api, path: str, query: Mapping[str, Any], out: TextIO, progress: Progress) -> None:
    """Write an export to standard output."""
    out.flush()
    _copy(api, path, query, out.buffer, progress)
    out.flush()


def progress_of(form: str, err: TextIO) -> Progress:
    """Return what shows the progress of an export in a format."""
    return Progress(err, _LINE_ENDS.get(form))


def _copy(api: Api, path: str, query: Mapping[str, Any], file: BinaryIO, progress: Progress) -> None:
    def write(chunk: bytes) -> None:
        file.write(chunk)
        progress.add(chunk)

    def begin(total: int | None) -> None:
        progress.total = total

    try:
        api.export(path, query, begin, write)
    finally:
        progress.end()
