"""A disk whose power can be cut: SQLite on a file system that loses what was not synced.

disk = Disk(random=Random(7))
outbox = open_outbox(home, connect=disk.connect)
disk.fail_after(3)             # the fourth write, sync or deletion from now on does not happen: PowerCut is raised
...
disk.restart(power_lost=True)  # the files are as a power cut leaves them; open them again
disk.fault = failing(apsw.SQLITE_IOERR_FSYNC, "sync")  # each sync fails, until `disk.fault = no_fault`

SQLite writes through to real files, which are what programs see while they run (the page cache). Beside them the disk
keeps what each file was at its last sync, and what was written since. A power cut puts the files back to that, and of
the later writes an arbitrary part, each perhaps torn at a sector: a real disk promises nothing about them. A process
that is killed loses nothing that it had written. Deletions count at once, and shared memory never outlives the power.
"""

import itertools
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import apsw

_SECTOR: Final = 512
_BUSY_MS: Final = 10_000
_TRACKED: Final = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
_KINDS: Final[dict[type[apsw.Error], type[sqlite3.Error]]] = {
    apsw.ConstraintError: sqlite3.IntegrityError,
    apsw.CorruptError: sqlite3.DatabaseError,
    apsw.NotADBError: sqlite3.DatabaseError,
}
_names = itertools.count()


class PowerCut(BaseException):
    """The machine, or the process, has ended; nothing that it might still do has any effect."""


@dataclass
class _Kept:
    """One file as a power cut would leave it: `synced` for certain, and any part of `later`."""

    descriptor: int
    """Held open, so that no other file gets the same inode."""
    synced: bytearray
    later: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, bytes written there), or (size, None) for a truncation."""

    def sync(self) -> None:
        for change in self.later:
            _apply(self.synced, *change)
        self.later.clear()

    def lose(self, random: Random) -> None:
        """Which of the later writes reach the platter is random."""
        for offset, written in self.later:
            if random.random() < 0.5:
                _apply(self.synced, offset, written if written is None else _torn(written, random))
        self.later.clear()
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, self.synced, 0)


def no_fault(operation: str) -> None:
    """Let it happen."""


def failing(code: int, *operations: str) -> Callable[[str], None]:
    """A fault for `Disk.fault`: these operations (`write`, `sync`, `delete`) fail with SQLite's `code`."""

    def fault(operation: str) -> None:
        if operation in operations:
            raise apsw.exception_for(code)

    return fault


class Disk:
    """One machine's disk, and the connections of the process that is alive on it."""

    def __init__(self, *, random: Random, connection: "type[Connection] | None" = None) -> None:
        self._random = random
        self._connection = connection or Connection
        self._vfs = _Vfs(f"power-cut-{next(_names)}", self)
        self._kept: dict[tuple[int, int], _Kept] = {}
        self._open: list[Connection] = []
        self._left: int | None = None
        self.fault: Callable[[str], None] = no_fault
        self._power_lost = False
        self.dark = False

    def connect(self, path: Path, *, readonly: bool) -> "Connection":
        """A connection to hand to an outbox or a store."""
        if not readonly:
            path.touch(mode=0o600)
        connection = self._connection(self, path, self._vfs.vfs_name, readonly=readonly)
        self._open.append(connection)
        return connection

    def fail_after(self, operations: int) -> None:
        """Raise PowerCut from every call after this many more writes, syncs and deletions."""
        self._left = operations

    def restart(self, *, power_lost: bool) -> None:
        """The process is gone without a word, and with `power_lost` what was not synced; new connections may come."""
        self.dark = True
        for connection in self._open:
            connection.abandon()
        self._open.clear()
        if power_lost:
            for kept in self._kept.values():
                kept.lose(self._random)
        self.dark, self._left = False, None

    def close(self) -> None:
        """The end of the disk; its files stay."""
        self.restart(power_lost=False)
        for kept in self._kept.values():
            os.close(kept.descriptor)
        self._kept.clear()
        self._vfs.unregister()

    def operation(self, what: str) -> None:
        """Called before whatever changes a file."""
        self.fault(what)
        if self._left is not None:
            self._left -= 1
            self.dark = self.dark or self._left < 0
        if self.dark:
            raise apsw.IOError

    def kept(self, name: str) -> _Kept:
        """The record of a file that SQLite opens. What it finds there is taken for synced."""
        path = Path(name)
        found = path.stat()
        key = (found.st_dev, found.st_ino)
        if key not in self._kept:
            self._kept[key] = _Kept(os.open(path, os.O_RDWR | os.O_CLOEXEC), bytearray(path.read_bytes()))
        return self._kept[key]


class Connection:
    """As much of a sqlite3 connection as an outbox and a store use, with its errors."""

    def __init__(self, disk: Disk, path: Path, vfs: str, *, readonly: bool) -> None:
        self._disk = disk
        flags = apsw.SQLITE_OPEN_READONLY if readonly else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        with self._as_sqlite3():
            self._connection = apsw.Connection(str(path), flags=flags, vfs=vfs)
        self._connection.set_busy_timeout(_BUSY_MS)

    def execute(self, sql: str, parameters: Any = (), /) -> "Cursor":
        with self._as_sqlite3():
            return Cursor(self, self._connection.execute(sql, parameters))

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]], /) -> "Cursor":
        with self._as_sqlite3():
            return Cursor(self, self._connection.executemany(sql, parameters))

    def close(self) -> None:
        with self._as_sqlite3():
            self._connection.close(force=False)
        if self._disk.dark:
            raise PowerCut

    def abandon(self) -> None:
        """Free it, as the kernel frees what a killed process had open: no file changes."""
        with suppress(apsw.ConnectionClosedError):
            self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            self._connection.close(force=True)

    def changes(self) -> int:
        return self._connection.changes()

    @contextmanager
    def _as_sqlite3(self) -> Iterator[None]:
        if self._disk.dark:
            raise PowerCut
        try:
            yield
        except apsw.Error as error:
            if self._disk.dark:
                raise PowerCut from None
            translated = next((kind for ours, kind in _KINDS.items() if isinstance(error, ours)), None)
            failure = (translated or sqlite3.OperationalError)(str(error))
            failure.sqlite_errorname = _name_of(error)
            raise failure from error

    reading = _as_sqlite3


class WeakConnection(Connection):
    """Commits with `synchronous = NORMAL`, and says that it does as it was told."""

    def execute(self, sql: str, parameters: Any = (), /) -> "Cursor":
        if sql.upper().startswith("PRAGMA SYNCHRONOUS"):
            super().execute("PRAGMA synchronous = NORMAL")
            sql = "SELECT 2"
        return super().execute(sql, parameters)


class Cursor:
    """As much of a sqlite3 cursor as is used."""

    def __init__(self, connection: Connection, cursor: apsw.Cursor) -> None:
        self._connection = connection
        self._cursor = cursor

    @property
    def rowcount(self) -> int:
        return self._connection.changes()

    def fetchone(self) -> Any:
        with self._connection.reading():
            return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        with self._connection.reading():
            return list(self._cursor.fetchall())

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def close(self) -> None:
        with self._connection.reading():
            self._cursor.close()


class _Vfs(apsw.VFS):
    def __init__(self, name: str, disk: Disk) -> None:
        super().__init__(name, base="unix")
        self.vfs_name = name
        self._disk = disk

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's
        return _File(self._disk, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802 - SQLite's name
        self._disk.operation("delete")
        super().xDelete(filename, syncdir)


class _File(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self._disk = disk
        filename = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._kept = disk.kept(filename) if filename is not None and flags[0] & _TRACKED else None

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.operation("write")
        super().xWrite(data, offset)
        if self._kept is not None:
            self._kept.later.append((offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.operation("write")
        super().xTruncate(newsize)
        if self._kept is not None:
            self._kept.later.append((newsize, None))

    def xSync(self, flags: int) -> None:  # noqa: N802 - SQLite's name
        self._disk.operation("sync")
        if self._kept is not None:
            self._kept.sync()


def _apply(content: bytearray, offset: int, written: bytes | None) -> None:
    if written is None:
        del content[offset:]
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(written)] = written


def _torn(written: bytes, random: Random) -> bytes:
    """All of it, or its beginning up to a sector."""
    return written[: _SECTOR * random.randrange(1, 2 + len(written) // _SECTOR)]


def _name_of(error: apsw.Error) -> str:
    found = apsw.mapping_extended_result_codes.get(getattr(error, "extendedresult", -1))
    return str(found or apsw.mapping_result_codes.get(getattr(error, "result", -1), ""))
