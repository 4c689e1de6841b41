"""Reads an SQLite file's pages without SQLite: what a broken file still holds, in any order.

SQLite finds rows through other pages, and gives up where one of those is broken. But a table's rows are whole in its
leaf pages, and each leaf page can be read alone: so a destroyed header, schema or inner page costs nothing, and a
destroyed leaf page costs only its own rows. The log (`-wal`) is applied to the file: committed frames whose checksum
holds. The other versions of a page, broken frames and those that a newer frame replaced, are read beside it.
(File format: sqlite.org/fileformat2.html; tests compare it with what SQLite itself reads.)
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

from pisync_agent.outbox.recovery.log import DEFAULT_SIZE, SIZES, Frame, read_log

Value = int | float | str | bytes | None

_MAGIC: Final = b"SQLite format 3\0"
_LEAF: Final = 0x0D
_PAYLOAD_MAX: Final = 16 * 1024 * 1024
_CELL_LEAST: Final = 4
_INTEGERS: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A table's row: its rowid and its columns; a text that is not UTF-8 stays bytes."""

    rowid: int
    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A page as it stands somewhere else than in the newest intact place."""

    page: int
    """0 if its number is destroyed."""
    offset: int
    """Where it begins: in the log, or in the database where `in_log` is false."""
    in_log: bool
    replaced: bool
    """Whether an intact newer version replaced it; else it may be the newest, and broken."""


class Pages:
    """The pages of a database with its log applied, read one at a time. Close it. Raises OSError."""

    def __init__(self, path: Path) -> None:
        log = path.with_name(path.name + "-wal")
        self._files: list[BinaryIO] = []
        self._database = self._opened(path)
        self._log = self._opened(log)
        stated, pages = self._header()
        self.size = stated or self._size_by_leaves() or DEFAULT_SIZE
        found = read_log(log, self.size)
        if found is not None and (found.header_intact or stated is None):
            self.size = found.page_size
        self._length = -(-_length(self._database) // self.size)
        self._newest: dict[int, int] = {}
        self._doubtful: dict[int, int] = {}
        self.others: list[Version] = []
        """The other versions of pages, those that may be the newest first."""
        if found is not None and found.page_size == self.size:
            self._apply(found.frames, found.committed, trusted=found.round_known)
        self.whole = (found is None or found.whole) and pages <= max(self._length, *self._newest, 0)
        """Whether neither file is cut and the log is not broken."""

    def _opened(self, path: Path) -> BinaryIO | None:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        self._files.append(file)
        return file

    def _header(self) -> tuple[int | None, int]:
        """Return the page size and the number of pages that the database states; (None, 0) if unreadable."""
        head = self._database.read(100) if self._database else b""
        size = int.from_bytes(head[16:18], "big") if head.startswith(_MAGIC) else 0
        size = 65536 if size == 1 else size
        return (size, int.from_bytes(head[28:32], "big")) if size in SIZES else (None, 0)

    def _size_by_leaves(self) -> int | None:
        """Return the page size of a database without a header: the smallest at whose odd multiples rows are."""
        length = _length(self._database)
        for size in SIZES:
            if any(_is_leaf(self._read(self._database, at, size)) for at in range(size, length, 2 * size)):
                return int(size)
        return None

    def _apply(self, frames: Sequence[Frame], committed: int, *, trusted: bool) -> None:
        """Find the versions of each page. Frames behind the last commit count only where a commit may be broken."""
        if not all(frame.intact for frame in frames[committed:]):
            committed = len(frames)
        replaced, doubtful = [], []
        for frame in frames[:committed]:
            if not (frame.intact and trusted):
                doubtful.append(Version(page=frame.page, offset=frame.offset, in_log=True, replaced=False))
                self._doubtful[frame.page] = frame.offset
                continue
            replaced.append(self._replaced(frame.page))
            self._newest[frame.page] = frame.offset
        self.others = [*reversed(doubtful), *(each for each in reversed(replaced) if each is not None)]

    def _replaced(self, page: int) -> Version | None:
        """Return the version that is the newest so far."""
        if page in self._newest:
            return Version(page=page, offset=self._newest[page], in_log=True, replaced=True)
        if 1 <= page <= self._length:
            return Version(page=page, offset=(page - 1) * self.size, in_log=False, replaced=True)
        return None

    def numbers(self) -> Iterator[int]:
        """Yield the numbers of all pages."""
        yield from range(1, self._length + 1)
        # A broken frame may state any number.
        yield from sorted(number for number in self._newest if number > self._length)

    def page(self, number: int) -> bytes:
        """Return a page's bytes; fewer than `size`, or none, where the file ends or cannot be read."""
        if number in self._newest:
            return self._read(self._log, self._newest[number])
        return self._in_database(number)

    def rows(self, number: int) -> Iterator[Row]:
        """Yield the readable rows of a page, if it is a table's leaf page.

        A row that goes on in other pages is yielded again with each other version of these.
        """
        yield from self._rows(self.page(number))

    def other_rows(self, version: Version) -> Iterator[Row]:
        """Yield the readable rows of another version of a page."""
        yield from self._rows(self._read(self._log if version.in_log else self._database, version.offset))

    def _in_database(self, number: int) -> bytes:
        return self._read(self._database, (number - 1) * self.size) if number > 0 else b""

    def _in_doubt(self, number: int) -> bytes:
        return self._read(self._log, self._doubtful[number]) if number in self._doubtful else self.page(number)

    def _read(self, file: BinaryIO | None, offset: int, size: int | None = None) -> bytes:
        if file is None:
            return b""
        try:
            file.seek(offset)
            return file.read(size or self.size)
        except OSError:  # a bad spot on the card: other pages may be intact
            return b""

    def _rows(self, page: bytes) -> Iterator[Row]:
        start = 100 if page.startswith(_MAGIC) else 0
        if len(page) < start + 8 or page[start] != _LEAF:
            return
        for index in range(int.from_bytes(page[start + 3 : start + 5], "big")):
            pointer = start + 8 + 2 * index
            cell = int.from_bytes(page[pointer : pointer + 2], "big")
            if start < cell <= len(page) - _CELL_LEAST:
                yield from self._row(page, cell)

    def _row(self, page: bytes, cell: int) -> Iterator[Row]:
        try:
            length, at = varint(page, cell)
            rowid, at = varint(page, at)
        except IndexError:
            return
        if not 0 < length <= _PAYLOAD_MAX:
            return
        seen = set()
        views = (self.page, self._in_doubt, self._in_database) if length > self._local_most else (self.page,)
        for view in views:
            payload = self._payload(page, at, length, view)
            if payload is not None and payload not in seen:
                seen.add(payload)
                with suppress(IndexError, ValueError, struct.error):
                    yield Row(rowid=_signed(rowid), values=record(payload))

    @property
    def _local_most(self) -> int:
        """How many bytes of a row its own page holds at most."""
        return self.size - 35

    def _payload(self, page: bytes, at: int, length: int, view: Callable[[int], bytes]) -> bytes | None:
        """Return a row's bytes, its overflow pages included; None if any of these is missing."""
        most = self._local_most
        if length <= most:
            return _exactly(page[at : at + length], length)
        least = (self.size - 12) * 32 // 255 - 23
        here = least + (length - least) % (self.size - 4)
        here = here if here <= most else least
        parts = [page[at : at + here]]
        rest, following = length - here, int.from_bytes(page[at + here : at + here + 4], "big")
        while rest > 0:
            overflow = view(following)
            part = overflow[4 : 4 + min(rest, self.size - 4)]
            if not part:
                return None
            parts.append(part)
            rest -= len(part)
            following = int.from_bytes(overflow[:4], "big")
        return _exactly(b"".join(parts), length)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return (value, where it ends); raise IndexError beyond the end."""
    value = 0
    for index in range(8):
        byte = data[at + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + index + 1
    return value << 8 | data[at + 8], at + 9


def record(payload: bytes) -> tuple[Value, ...]:
    """Return a row's columns; raise ValueError or IndexError if it is not a row."""
    header_end, at = varint(payload, 0)
    if header_end > len(payload):
        raise ValueError("the header is longer than the row")
    kinds = []
    while at < header_end:
        kind, at = varint(payload, at)
        kinds.append(kind)
    values = []
    at = header_end
    for kind in kinds:
        size = _size(kind)
        values.append(_value(kind, _exactly(payload[at : at + size], size)))
        at += size
    if at != len(payload):
        raise ValueError("the columns do not fill the row")
    return tuple(values)


def _value(kind: int, content: bytes | None) -> Value:
    if content is None:
        raise ValueError("a column is truncated")
    if kind == 0:
        return None
    if kind in _INTEGERS:
        return int.from_bytes(content, "big", signed=True)
    if kind == 7:
        return float(struct.unpack(">d", content)[0])
    if kind in (8, 9):
        return kind - 8
    if kind % 2 == 0:
        return content
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _size(kind: int) -> int:
    if kind >= 12:
        return (kind - 12) // 2
    if kind in (10, 11):
        raise ValueError("unknown kind of column")
    return 8 if kind == 7 else _INTEGERS.get(kind, 0)


def _exactly(content: bytes, length: int) -> bytes | None:
    return content if len(content) == length else None


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _is_leaf(page: bytes) -> bool:
    """Return whether this is a table's leaf page with rows, each where it belongs."""
    rows, content = int.from_bytes(page[3:5], "big"), int.from_bytes(page[5:7], "big")
    if page[:1] != bytes([_LEAF]) or rows == 0 or not 8 + 2 * rows <= content < len(page):
        return False
    return all(content <= at < len(page) for at in struct.unpack(f">{rows}H", page[8 : 8 + 2 * rows]))


def _length(file: BinaryIO | None) -> int:
    return 0 if file is None else file.seek(0, 2)
