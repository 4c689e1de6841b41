"""One file of the spool: opened so that whatever an app put there neither blocks nor leads elsewhere, read in groups.

Apps of any user in the group write the folder, so a name in it may be a link, a pipe, or another file by now. Every
access is relative to the open folder, follows no link, and is checked on the descriptor.
"""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from pisync_agent.outbox.files import random_hex
from pisync_agent.service.decoding import decode
from pisync_agent.service.spool_folder import ENDING, REFUSED
from pisync_common.limits import KIB, MIB

FILE_BYTES: Final = 64 * MIB
LINE_BYTES: Final = 1 * MIB
NAME_BYTES: Final = 200
GROUP_LINES: Final = 250
GROUP_BYTES: Final = 256 * KIB
SHOWN_CHARS: Final = 64 * KIB
"""How much of a refused line is kept beside the file."""
REFUSED_MODE: Final = 0o640
NOT_REGULAR: Final = "it is not a regular file"


class Unusable(Exception):
    """The file cannot be taken as it is; it stays where it is."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a file was read."""

    offset: int = 0
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line, and the position behind it. An overlong line is cut."""

    start: Position
    end: Position
    text: bytes


class SpoolFile:
    """A file of the folder that is open as `folder`. A context manager. Raises Unusable, OSError."""

    def __init__(self, folder: int, name: str) -> None:
        self._folder = folder
        self._name = name
        with ExitStack() as stack:
            if len(os.fsencode(name)) > NAME_BYTES:
                raise Unusable(f"a name may have {NAME_BYTES} bytes")
            descriptor = _opened(folder, name)
            stack.callback(os.close, descriptor)
            found = _checked(descriptor)
            self._file = stack.enter_context(os.fdopen(descriptor, "rb", buffering=256 * KIB, closefd=False))
            self._inode = found.st_ino
            self._id = hashlib.sha256(f"{found.st_ino} {found.st_mtime_ns} {name!r}".encode())
            self._check_end(found.st_size)
            self._refused = stack.enter_context(ExitStack())
            self._refusals = -1
            self._close = stack.pop_all()

    @property
    def id(self) -> str:
        """The same for the same file after a restart, and for no other."""
        return self._id.hexdigest()

    def attempt(self, line: Line) -> int:
        """Return a number for the line that is the same whenever it is read again: see `NewEvent.attempt`."""
        digest = self._id.copy()
        digest.update(b" %d" % line.start.offset)
        return int.from_bytes(digest.digest()[:8]) >> 1

    def groups(self, start: Position) -> Iterator[list[Line]]:
        """Yield the lines from a position on, a commit at a time, without the empty lines."""
        self._file.seek(start.offset)
        group: list[Line] = []
        size, at = 0, start
        while (line := self._line(at)) is not None:
            at = line.end
            if line.text.strip():
                group.append(line)
                size += len(line.text)
            if len(group) >= GROUP_LINES or size >= GROUP_BYTES:
                yield group
                group, size = [], 0
        if group:
            yield group

    def refuse(self, refused: Sequence[tuple[Line, str]]) -> None:
        """Write lines and the reason of each beside the file, durably."""
        if self._refusals < 0:
            self._refusals = self._open_refusals()
        rows = [
            {"line": line.end.line, "reason": reason, "text": line.text.decode("utf-8", "replace")[:SHOWN_CHARS]}
            for line, reason in refused
        ]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "replace")
        while text:
            text = text[os.write(self._refusals, text) :]
        os.fsync(self._refusals)

    def delete(self) -> None:
        """Delete the file, durably; a file that has taken its name meanwhile stays, under another if need be."""
        done = f".{random_hex(8)}.done"  # no name that an app could take before
        os.rename(self._name, done, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        if os.stat(done, dir_fd=self._folder, follow_symlinks=False).st_ino == self._inode:
            os.unlink(done, dir_fd=self._folder)
        else:  # not under its old name: by now that may be a third file's
            os.rename(done, f"{random_hex(8)}{ENDING}", src_dir_fd=self._folder, dst_dir_fd=self._folder)
        os.fsync(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close.close()

    def _line(self, start: Position) -> Line | None:
        text = self._file.readline(LINE_BYTES + 1)
        if not text:
            return None
        size, piece = len(text), text
        while piece and not piece.endswith(b"\n"):
            piece = self._file.readline(LINE_BYTES + 1)
            size += len(piece)
        return Line(start=start, end=Position(offset=start.offset + size, line=start.line + 1), text=text)

    def _check_end(self, size: int) -> None:
        """Raise Unusable where the last line looks as if it were still being written."""
        self._file.seek(max(0, size - LINE_BYTES))
        last = self._file.read(LINE_BYTES).rpartition(b"\n")[2]
        try:
            if last.strip():
                decode(last)
        except ValueError as error:
            raise Unusable("its last line has no end; write elsewhere, then rename into the folder") from error

    def _open_refusals(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(self._name + REFUSED, flags, REFUSED_MODE, dir_fd=self._folder)
        except OSError as error:
            raise Unusable(f"the file for its refused lines cannot be opened ({error.strerror})") from error
        self._refused.callback(os.close, descriptor)
        if _checked(descriptor).st_uid != os.geteuid():
            raise Unusable("the file for its refused lines belongs to another user; move it away")
        os.fchmod(descriptor, REFUSED_MODE)  # whatever the umask: the group reads it
        return descriptor


def _opened(folder: int, name: str) -> int:
    """Open a file for reading without following a link, or waiting for a pipe's other end."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=folder)
    except PermissionError as error:
        raise Unusable("the agent may not read it (chmod g+r, and the group of the folder)") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENODEV):
            raise Unusable(NOT_REGULAR) from error
        raise


def _checked(descriptor: int) -> os.stat_result:
    """Return what a descriptor is of, if it can be taken."""
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise Unusable(NOT_REGULAR)
    if found.st_nlink > 1:
        raise Unusable("it has a second name (a hard link), perhaps of another user's file")
    if found.st_size > FILE_BYTES:
        raise Unusable(f"it has more than {FILE_BYTES // MIB} MiB; split it")
    return found
