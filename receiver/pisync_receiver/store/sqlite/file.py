"""The database as a file: whether what is committed will be found at its path by a restart.

Nothing here opens the database file while SQLite has it open: closing it again would release SQLite's locks.
"""

import logging
import os
import sqlite3
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Self

from pisync_common.sqlite import Connection
from pisync_receiver.errors import DatabaseLost, StoreUnusable

log = logging.getLogger(__name__)

MALFORMED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
"""Primary result codes of a damaged file."""

_Identity = tuple[int, int] | None
_GRAINS: Final = (10**9, 10**6, 10**3, 100)
"""What some file systems round times to, in nanoseconds, once a file leaves their cache."""


@dataclass(frozen=True, slots=True)
class _LogIndex:
    """What SQLite's index of the log says, in memory that all programs share: https://sqlite.org/walformat.html."""

    page_size: int = 0
    frames: int = 0
    """Frames of the log that count."""
    pages: int = 0
    """Pages of the database after the last of them."""
    salts: bytes = b""
    """They change when the log is begun again."""
    copied: int = 0
    """Frames that checkpoints have copied to the file."""
    copying: int = 0
    """The same with those that a checkpoint is about to copy."""

    SIZE: ClassVar[int] = 132

    @classmethod
    def read(cls, file: int | None) -> Self:
        index = b"" if file is None else os.pread(file, cls.SIZE, 0)
        if len(index) < cls.SIZE:
            return cls()
        size, frames, pages = struct.unpack_from("=HII", index, 14)
        copied, copying = struct.unpack_from("=I", index, 96)[0], struct.unpack_from("=I", index, 128)[0]
        return cls(65_536 if size == 1 else size, frames, pages, index[32:40], copied, copying)

    @property
    def file_bytes(self) -> int:
        """What the database's file holds once all is copied to it."""
        return self.pages * self.page_size

    @property
    def log_bytes(self) -> int:
        """The least that the log's file holds."""
        return _WAL_HEADER + self.frames * (_FRAME_HEADER + self.page_size) if self.frames else 0


@dataclass(frozen=True, slots=True)
class _Look:
    """The files at one moment; the index first, so that a checkpoint that goes on is seen by the next look."""

    index: _LogIndex
    file: os.stat_result | None
    log: os.stat_result | None


class DatabaseFile:
    """Watches the file and its log while they are open: that both stay at their path, and that only SQLite writes them.

    A file that was moved is refused until it is back. A file that was changed by anything else, or is damaged, is
    refused until a restart: what SQLite holds in memory no longer belongs to it.
    """

    def __init__(self, path: Path, connection: Connection) -> None:
        """Take the open database as it is now. `connection` is the writer's."""
        self._path = path
        self._log = str(path) + "-wal"
        self._connection = connection
        # Kept until the connections are closed: closing it before would release SQLite's locks.
        self._index_file = _opened(f"{path}-shm")
        look = self._look()
        self._index = look.index
        self._identity = _identity(look.file)
        self._log_identity = _identity(look.log)
        self._content = _content(look.file)
        self._foreign_commits = self._data_version()
        self._busy = False
        self._lock = threading.Lock()
        self._refusal: str | None = None
        self.damaged: str | None = None
        """Why the file is not used again before a restart."""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raise DatabaseLost unless what the block commits is in the file at its path. On the writer's thread."""
        look = self._look()
        self._check(look)
        self._check_content(look)
        self._busy = True
        try:
            yield
        finally:
            look = self._look()
            self._index = look.index
            self._content = self._shrunk_or(_content(self._in_order(look)))
            self._busy = False
        self._check(look)

    def is_suspect(self) -> bool:
        """Whether the file is not as the writer left it: let the writer look. On any thread."""
        return not self._busy and _content(_stat(str(self._path))) != self._content

    def check(self) -> None:
        """Raise DatabaseLost if the file was moved, replaced or damaged; log the change once. On any thread."""
        self._check(self._look())

    def _look(self) -> _Look:
        return _Look(_LogIndex.read(self._index_file), _stat(str(self._path)), _stat(self._log))

    def _check(self, look: _Look) -> None:
        refusal = self.damaged or self._moved(look) or self._log_lost(look)
        with self._lock:
            known, self._refusal = self._refusal, refusal
        if refusal is None:
            if known is not None:
                log.warning("the database is at its path again, and used again")
            return
        if refusal != known:
            log.error("%s", refusal)
        raise DatabaseLost(refusal)

    def note(self, error: Exception) -> None:
        """Stop using the file if this error of SQLite says that it is damaged."""
        code = getattr(error, "sqlite_errorcode", None)
        damaged = code is not None and (code & 0xFF in MALFORMED or code == sqlite3.SQLITE_IOERR_SHORT_READ)
        if damaged or isinstance(error, UnicodeDecodeError):
            self._give_up(
                f"{self._path} is damaged ({error}); nothing more is acknowledged or read until a restart. Stop the "
                "receiver, keep a copy of the file and its -wal, and restore a backup; devices send again what it lacks"
            )

    def _moved(self, look: _Look) -> str | None:
        if _identity(look.file) != self._identity:
            return (
                f"{self._path} was moved, replaced or deleted while the receiver was using it; nothing is acknowledged."
                " What was stored is in the moved file and its -wal: stop the receiver and put both back, or move the "
                "-wal away from a restored backup; then start it"
            )
        return None

    def _log_lost(self, look: _Look) -> str | None:
        if _identity(look.log) != self._log_identity:
            happened = "moved, replaced or deleted"
        elif _is_short(look) and _is_short(self._look()) and _is_short(self._look()):
            happened = "cut short"  # and not begun again by another program while it was looked at
        else:
            return None
        return (
            f"{self._log} was {happened} while the receiver was using it; nothing is acknowledged. It holds what was "
            "stored last: stop the receiver, put it back beside its database, and start it"
        )

    def _check_content(self, look: _Look) -> None:
        """Raise DatabaseLost if something other than SQLite wrote the file since the last look."""
        content = _content(look.file)
        if content is None or content == self._content or self._rounded(content):
            return
        if content[0] >= (self._content or content)[0] and (commits := self._data_version()) != self._foreign_commits:
            self._foreign_commits, self._content = commits, content  # another program committed through SQLite
            return
        index = _LogIndex.read(self._index_file)  # again: a checkpoint may have begun since
        if index != self._index or index.copying > index.copied:
            self._index, self._content = index, content  # another program makes a checkpoint, or has made one
            return
        self._give_up(
            f"{self._path} was overwritten while the receiver was using it; nothing more is acknowledged until a "
            "restart. Stop the receiver. If only its time was changed, `touch` the -wal; to use another file that was "
            "put there, move the -wal away; otherwise restore a backup. Then start it; devices send again what it lacks"
        )
        self.check()

    def _in_order(self, look: _Look) -> os.stat_result | None:
        """Make the file no younger than its log after the clock was set back: `check_log` compares their times."""
        file, log_found = look.file, look.log
        if file is None or log_found is None or _identity(file) != self._identity:
            return file
        if file.st_mtime_ns <= log_found.st_mtime_ns + _LATE_NS:
            return file
        with suppress(OSError):
            os.utime(self._path, ns=(file.st_atime_ns, log_found.st_mtime_ns))
        return _stat(str(self._path))

    def _shrunk_or(self, content: tuple[int, int] | None) -> tuple[int, int] | None:
        """What to expect next: a file that SQLite did not make shorter, as it does after a VACUUM, is found then."""
        known = self._content
        if content is None or (known is not None and content[0] < known[0] and content[0] != self._index.file_bytes):
            return known
        return content

    def _rounded(self, content: tuple[int, int]) -> bool:
        if self._content is None or content[0] != self._content[0]:
            return False
        return content[1] in [self._content[1] // grain * grain for grain in _GRAINS]

    def _give_up(self, refusal: str) -> None:
        with self._lock:
            self.damaged = self.damaged or refusal

    def close(self) -> None:
        """After the connections are closed."""
        if self._index_file is not None:
            os.close(self._index_file)
            self._index_file = None

    def _data_version(self) -> int:
        """A number that changes when another connection commits."""
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])


def check_log(path: Path) -> None:
    """Raise StoreUnusable if the log beside the file, which SQLite would lay over it, is not its own.

    Before the database is opened. A log is the file's own if the file can be what the log was begun on: same page size
    and schema, the header's change counter no further away than the log reaches, and no page missing in both.
    """
    beside = Path(f"{path}-wal")
    log_size, size = _size(beside), _size(path)
    if not log_size or (size and log_size <= _WAL_HEADER):
        return
    if not size:
        state = "gone" if size is None else "empty"
        raise StoreUnusable(
            f"{path} is {state}, but its log {beside} is still there and may hold stored events; nothing was changed. "
            "Put the database file back beside it, or move the log away to begin a new database."
        )
    try:
        reason = _foreign(path, beside)
    except OSError as error:
        raise StoreUnusable(f"{path} or its log cannot be read: {error.strerror}; nothing was changed") from error
    if reason is not None:
        raise StoreUnusable(
            f"the log {beside} does not belong to {path}: {reason}; nothing was changed. If the file is a restored "
            "copy, move the log away and start again; otherwise put the file back that the log belongs to."
        )


_WAL_HEADER: Final = 32
_FRAME_HEADER: Final = 24
_WAL_MAGIC: Final = (0x377F0682, 0x377F0683)
_BACKUP: Final = 1
"""The schema's number in what SQLite's backup makes; a schema that was made by statements has a higher one."""
_LATE_NS: Final = 60 * 10**9
"""A checkpoint follows the commit before it within this time, unless it is the last one, which copies every page."""


def _foreign(path: Path, beside: Path) -> str | None:
    """Why a log cannot be the file's own; None if it can be."""
    with path.open("rb") as file, beside.open("rb") as frames:
        head = frames.read(_WAL_HEADER)
        page_size = _number(head, 8)
        if _number(head, 0) not in _WAL_MAGIC or page_size < 512:
            return None  # SQLite does not use it
        first_page = file.read(page_size)
        if (_number(first_page, 16, 2) or page_size) not in (page_size, page_size >> 16):
            return "their page sizes differ"
        pages, firsts, last = _frames(frames.fileno(), head, page_size)
        stored = os.fstat(file.fileno())
        if not pages.issuperset(range(stored.st_size // page_size + 1, last + 1)):
            return "pages are in neither, so the file is older"
        if not firsts:
            return None
        counters = [_number(page, 24) for page in firsts]
        if not min(counters) - 1 <= _number(first_page, 24) <= max(counters):
            return "it was written for another state of the file"
        if _number(first_page, 40) == _BACKUP != max(_number(page, 40) for page in firsts):
            return "it is a copy made by `backup`"
        if stored.st_mtime_ns > os.fstat(frames.fileno()).st_mtime_ns + _LATE_NS and first_page not in firsts:
            return "the file was written over a minute after it (`touch` the log if both were copied together)"
        return None


def _frames(log_file: int, head: bytes, page_size: int) -> tuple[set[int], list[bytes], int]:
    """Of the frames since the log was last begun: the pages they hold, each version of page 1, and the number of pages
    of the database after the last commit."""
    pages: set[int] = set()
    firsts: list[bytes] = []
    newest = b"", bytes(8), b""
    last, place = 0, _WAL_HEADER
    salts, before = head[16:24], head[24:32]
    while len(frame := os.pread(log_file, _FRAME_HEADER, place)) == _FRAME_HEADER and frame[8:16] == salts:
        number, size = _number(frame, 0), _number(frame, 4)
        pages.add(number)
        if number == 1:
            firsts.append(os.pread(log_file, page_size, place + _FRAME_HEADER))
            newest = frame[:8] + firsts[-1], before, frame[16:24]
        last = size or last
        before = frame[16:24]
        place += _FRAME_HEADER + page_size
    if firsts and _checksum(newest[0], newest[1], ">" if head[3] & 1 else "<") != newest[2]:
        firsts.pop()  # a power cut tore it, and SQLite does not use it
    return pages, firsts, last


def _checksum(data: bytes, before: bytes, order: str) -> bytes:
    """Of a frame, after that of the frame before it: https://sqlite.org/fileformat2.html#checksum_algorithm."""
    first, second = struct.unpack(">II", before)
    for one, two in struct.iter_unpack(f"{order}II", data[: len(data) // 8 * 8]):
        first = (first + one + second) & 0xFFFFFFFF
        second = (second + two + first) & 0xFFFFFFFF
    return struct.pack(">II", first, second)


def _number(data: bytes, place: int, size: int = 4) -> int:
    return int.from_bytes(data[place : place + size], "big")


def _stat(path: str) -> os.stat_result | None:
    with suppress(OSError):
        return os.stat(path)  # noqa: PTH116 - half the calls of Path.stat, several times a group
    return None


def _opened(path: str) -> int | None:
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return None


def _is_short(look: _Look) -> bool:
    return look.log is not None and look.log.st_size < look.index.log_bytes


def _identity(found: os.stat_result | None) -> _Identity:
    return None if found is None else (found.st_dev, found.st_ino)


def _content(found: os.stat_result | None) -> tuple[int, int] | None:
    """Size and time of the last change."""
    return None if found is None else (found.st_size, found.st_mtime_ns)


def _size(path: Path) -> int | None:
    found = _stat(str(path))
    return None if found is None else found.st_size
