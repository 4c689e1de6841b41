"""Reads an SQLite file's pages without SQLite: what a broken file still holds, in any order.

SQLite finds rows through other pages, and gives up where one of those is broken. But a table's rows are whole in its
leaf pages, and each leaf page can be read alone: so a destroyed header, schema or inner page costs nothing, and a
destroyed leaf page costs only its own rows. The log (`-wal`) is applied to the file: committed frames whose checksum
holds. (File format: sqlite.org/fileformat2.html; tests compare it with what SQLite itself reads.)
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

Value = int | float | str | bytes | None

WAL_HEADER: Final = 32
FRAME_HEADER: Final = 24
_MAGICS: Final = {b"\x37\x7f\x06\x82": "<", b"\x37\x7f\x06\x83": ">"}
_SIZES: Final = tuple(2**power for power in range(9, 17))
_DEFAULT_SIZE: Final = 4096
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
class Frame:
    """One page in the log."""

    page: int
    offset: int
    """Where its content begins in the log file."""
    commits: bool
    intact: bool
    """Whether its checksum follows from the frame before it."""


class Pages:
    """The pages of a database with its log applied, read one at a time. Close it. Raises OSError."""

    def __init__(self, path: Path) -> None:
        log = path.with_name(path.name + "-wal")
        self._files: list[BinaryIO] = []
        self._database = self._opened(path)
        self._log = self._opened(log)
        self.size = self._page_size(log)
        self._length = _length(self._database) // self.size + 1
        self._newer: dict[int, int] = {}
        self._doubtful: dict[int, list[int]] = {}
        if self._log:
            self._overlay(log)

    def _opened(self, path: Path) -> BinaryIO | None:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        self._files.append(file)
        return file

    def _page_size(self, log: Path) -> int:
        head = self._database.read(100) if self._database else b""
        stated = int.from_bytes(head[16:18], "big") if head.startswith(b"SQLite format 3\0") else 0
        stated = 65536 if stated == 1 else stated
        if stated in _SIZES:
            return stated
        header = LogHeader.read(log)
        return header.page_size if header else _DEFAULT_SIZE

    def _overlay(self, log: Path) -> None:
        """Find each page in the log; a broken frame is kept beside the intact one, not instead of it."""
        uncommitted: list[Frame] = []
        for frame in frames(log, self.size):
            uncommitted.append(frame)
            if not frame.commits:
                continue
            for each in uncommitted:
                if each.intact:
                    self._newer[each.page] = each.offset
                else:
                    self._doubtful.setdefault(each.page, []).append(each.offset)
            uncommitted.clear()

    def numbers(self) -> Iterator[int]:
        """Yield the numbers of all pages."""
        yield from range(1, self._length + 1)
        # A broken frame may state any number.
        yield from sorted(number for number in {*self._newer, *self._doubtful} if number > self._length)

    def page(self, number: int) -> bytes:
        """Return a page's bytes; fewer than `size`, or none, where the file ends or cannot be read."""
        if number in self._newer:
            return self._read(self._log, self._newer[number])
        return self._read(self._database, (number - 1) * self.size) if number > 0 else b""

    def rows(self, number: int) -> Iterator[Row]:
        """Yield the readable rows of a page, if it is a table's leaf page."""
        yield from self._rows(self.page(number), 100 if number == 1 else 0)
        for offset in self._doubtful.get(number, ()):
            yield from self._rows(self._read(self._log, offset), 100 if number == 1 else 0)

    def _read(self, file: BinaryIO | None, offset: int) -> bytes:
        if file is None:
            return b""
        try:
            file.seek(offset)
            return file.read(self.size)
        except OSError:  # a bad spot on the card: other pages may be intact
            return b""

    def _rows(self, page: bytes, start: int) -> Iterator[Row]:
        if len(page) < start + 8 or page[start] != _LEAF:
            return
        for index in range(int.from_bytes(page[start + 3 : start + 5], "big")):
            pointer = start + 8 + 2 * index
            cell = int.from_bytes(page[pointer : pointer + 2], "big")
            row = self._row(page, cell) if start < cell <= len(page) - _CELL_LEAST else None
            if row is not None:
                yield row

    def _row(self, page: bytes, cell: int) -> Row | None:
        try:
            length, at = varint(page, cell)
            rowid, at = varint(page, at)
            if not 0 < length <= _PAYLOAD_MAX:
                return None
            payload = self._payload(page, at, length)
            return None if payload is None else Row(rowid=_signed(rowid), values=record(payload))
        except (IndexError, ValueError, struct.error):
            return None

    def _payload(self, page: bytes, at: int, length: int) -> bytes | None:
        """Return a row's bytes, its overflow pages included; None if any of these is missing."""
        most = self.size - 35
        if length <= most:
            return _exactly(page[at : at + length], length)
        least = (self.size - 12) * 32 // 255 - 23
        here = least + (length - least) % (self.size - 4)
        here = here if here <= most else least
        parts = [page[at : at + here]]
        rest, following = length - here, int.from_bytes(page[at + here : at + here + 4], "big")
        while rest > 0:
            overflow = self.page(following)
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


@dataclass(frozen=True, kw_only=True, slots=True)
class LogHeader:
    """The first 32 bytes of a log."""

    order: str
    page_size: int
    salt: bytes
    checksum: tuple[int, int] | None
    """Where the first frame's checksum starts from; None if that is lost."""
    intact: bool

    @classmethod
    def read(cls, log: Path) -> Self | None:
        """Return None if there is no log, or it does not begin like a log."""
        try:
            with log.open("rb") as file:
                head = file.read(WAL_HEADER)
        except FileNotFoundError:
            return None
        if len(head) < WAL_HEADER or head[:4] not in _MAGICS:
            return None
        order = _MAGICS[head[:4]]
        page_size = int.from_bytes(head[8:12], "big")
        if page_size not in _SIZES:
            return None
        stated = _two_words(head, 24)
        intact = checksum(head[:24], order, (0, 0)) == stated
        return cls(order=order, page_size=page_size, salt=head[16:24], checksum=stated, intact=intact)


def frames(log: Path, page_size: int = _DEFAULT_SIZE) -> Iterator[Frame]:
    """Yield the frames of the log's present round, broken frames included, up to the last frame with its salt.

    A frame's checksum is computed from the checksum stated in the frame before it, so a broken frame does not hide the
    frames behind it. A destroyed header is reconstructed from the first frame.
    """
    header = _header(log, page_size)
    if header is None:
        return
    before = header.checksum
    with log.open("rb") as file:
        file.seek(WAL_HEADER)
        for _ in range(_last_of_round(file, header)):
            whole = file.read(FRAME_HEADER + header.page_size)
            head, content = whole[:FRAME_HEADER], whole[FRAME_HEADER:]
            if len(content) < header.page_size:
                return
            stated = _two_words(head, 16)
            sums = checksum(content, header.order, checksum(head[:8], header.order, before)) if before else stated
            ours = head[8:16] == header.salt  # else it is left over from an earlier round
            yield Frame(
                page=int.from_bytes(head[:4], "big"),
                offset=file.tell() - header.page_size,
                commits=ours and head[4:8] != b"\0\0\0\0",
                intact=ours and sums == stated,
            )
            before = stated


def _last_of_round(file: BinaryIO, header: LogHeader) -> int:
    """Return the number of the last whole frame with the header's salt; seek to where the frames begin."""
    step = FRAME_HEADER + header.page_size
    last = 0
    for number, offset in enumerate(range(WAL_HEADER, _length(file) - step + 1, step), start=1):
        file.seek(offset)
        if file.read(FRAME_HEADER)[8:16] == header.salt:
            last = number
    file.seek(WAL_HEADER)
    return last


def _header(log: Path, page_size: int) -> LogHeader | None:
    header = LogHeader.read(log)
    return header if header is not None and header.intact else _header_from_first_frame(log, page_size)


def checksum(content: bytes, order: str, before: tuple[int, int]) -> tuple[int, int]:
    """Return the log's running checksum over `content`, a multiple of 8 bytes."""
    one, two = before
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


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


def _two_words(data: bytes, at: int) -> tuple[int, int]:
    return int.from_bytes(data[at : at + 4], "big"), int.from_bytes(data[at + 4 : at + 8], "big")


def _exactly(content: bytes, length: int) -> bytes | None:
    return content if len(content) == length else None


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _length(file: BinaryIO | None) -> int:
    return 0 if file is None else file.seek(0, 2)


def _header_from_first_frame(log: Path, page_size: int) -> LogHeader | None:
    try:
        with log.open("rb") as file:
            file.seek(WAL_HEADER)
            head = file.read(FRAME_HEADER)
    except FileNotFoundError:
        return None
    if len(head) < FRAME_HEADER:
        return None
    # The byte order is that of the machine that wrote it: every Pi and PC is little-endian.
    return LogHeader(order="<", page_size=page_size, salt=head[8:16], checksum=None, intact=False)
