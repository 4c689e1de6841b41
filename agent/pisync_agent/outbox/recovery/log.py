"""Reads SQLite's write-ahead log (`-wal`) without SQLite, whole or broken.

A frame's checksum continues that of the frame before it, so a hole hides nothing behind it: each frame is checked from
what the frame before it states, and only the first behind the hole cannot be checked. A destroyed header is replaced by
the salt of the first frame that its successor continues. If the log's very first frame is destroyed too, that salt may
be of an earlier round, whose pages are older than the database: then no frame counts as intact.
(File format: sqlite.org/fileformat2.html and walformat.html; tests compare it with what SQLite itself reads.)
"""

import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final, Self

WAL_HEADER: Final = 32
FRAME_HEADER: Final = 24
SIZES: Final = tuple(2**power for power in range(9, 17))
DEFAULT_SIZE: Final = 4096

_MAGICS: Final = {b"\x37\x7f\x06\x82": "<", b"\x37\x7f\x06\x83": ">"}
_NO_SALT: Final = bytes(8)
_INDEX_HEADER: Final = 48
_ROUNDS: Final = 2**20
_OPEN: Final = Path("/proc/self/fd")

Sums = tuple[int, int]
"""The log's running checksum."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One page in the log."""

    page: int
    """0 if its header is destroyed."""
    offset: int
    """Where its content begins in the log file."""
    commits: bool
    intact: bool
    """Whether its checksum follows from the frame before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The first 32 bytes of a log."""

    order: str
    page_size: int
    salt: bytes
    sums: Sums

    @classmethod
    def read(cls, file: BinaryIO) -> Self | None:
        """Return None if the header is destroyed."""
        file.seek(0)
        head = file.read(WAL_HEADER)
        if len(head) < WAL_HEADER or head[:4] not in _MAGICS:
            return None
        order, page_size, stated = _MAGICS[head[:4]], int.from_bytes(head[8:12], "big"), _two_words(head, 24)
        if page_size not in SIZES or checksum(head[:24], order, (0, 0)) != stated:
            return None
        return cls(order=order, page_size=page_size, salt=head[16:24], sums=stated)


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """The frames of a log's present round, broken frames included, in order."""

    frames: Sequence[Frame]
    page_size: int
    salt: bytes
    header_intact: bool
    round_known: bool
    """Whether the frames are certainly of the present round, and so newer than the database."""
    partial: bool
    """Whether the file ends within a frame."""

    @property
    def committed(self) -> int:
        """How many frames stand before the end of the last commit."""
        return max((number for number, frame in enumerate(self.frames, start=1) if frame.commits), default=0)

    @property
    def readable(self) -> int:
        """How many frames SQLite would apply: the commits before the first broken frame."""
        last = 0
        for number, frame in enumerate(self.frames, start=1):
            if not frame.intact:
                break
            last = number if frame.commits else last
        return last if self.header_intact else 0

    @property
    def whole(self) -> bool:
        return self.header_intact and not self.partial and all(frame.intact for frame in self.frames)


def read_log(path: Path, stated_size: int | None = None) -> Log | None:
    """Return the log; None if there is none, or nothing in it. `stated_size` is the database's page size, if known.

    Raises OSError.
    """
    try:
        with path.open("rb") as file:
            return _read(file, stated_size) if _length(file) > WAL_HEADER else None
    except FileNotFoundError:
        return None


def _read(file: BinaryIO, stated_size: int | None) -> Log:
    header = Header.read(file)
    order = header.order if header else "<"  # of the machine that wrote it: every Pi and PC is little-endian
    size = header.page_size if header else _size_by_spacing(file, stated_size or DEFAULT_SIZE)
    heads = _heads(file, size)
    first = 0 if header else next(_continued(file, heads, size), None)
    salt = header.salt if header else heads[first][8:16] if first is not None else _NO_SALT
    end = len(heads) if first is None else _end_of_round(file, heads, salt, size)
    return Log(
        frames=_frames(file, heads[:end], size=size, order=order, salt=salt, before=header.sums if header else None),
        page_size=size,
        salt=salt,
        header_intact=header is not None,
        round_known=header is not None or first == 0,
        partial=(_length(file) - WAL_HEADER) % (FRAME_HEADER + size) != 0,
    )


def _frames(
    file: BinaryIO, heads: Sequence[bytes], *, size: int, order: str, salt: bytes, before: Sums | None
) -> list[Frame]:
    found = []
    for number, head in enumerate(heads):
        ours = head[8:16] == salt
        found.append(
            Frame(
                page=int.from_bytes(head[:4], "big") if ours else 0,
                offset=_offset(number, size),
                commits=ours and head[4:8] != bytes(4),
                intact=ours
                and before is not None
                and _sums(head, _content(file, number, size), order, before) == _stated(head),
            )
        )
        before = _stated(head)
    return found


def _heads(file: BinaryIO, size: int) -> list[bytes]:
    """Return the header of each whole frame."""
    heads = []
    step = FRAME_HEADER + size
    for start in range(WAL_HEADER, _length(file) - step + 1, step):
        file.seek(start)
        heads.append(file.read(FRAME_HEADER))
    return heads


def _continued(file: BinaryIO, heads: Sequence[bytes], size: int) -> Iterator[int]:
    """Yield each frame from whose checksum that of the next follows."""
    for number, (head, following) in enumerate(pairwise(heads)):
        if head[8:16] == following[8:16] != _NO_SALT:
            content = _content(file, number + 1, size)
            if _sums(following, content, "<", _stated(head)) == _stated(following):
                yield number


def _end_of_round(file: BinaryIO, heads: Sequence[bytes], salt: bytes, size: int) -> int:
    """Return how many frames the round has: up to its last salt, and frames behind it that lost only their header."""
    end = max((number for number, head in enumerate(heads, start=1) if head[8:16] == salt), default=0)
    while end < len(heads) and not _is_older(heads[end][8:16], salt) and any(_content(file, end, size)):
        end += 1
    return end


def _is_older(salt: bytes, present: bytes) -> bool:
    """Return whether a salt is of an earlier round: its first half counts the rounds."""
    return 0 < (int.from_bytes(present[:4], "big") - int.from_bytes(salt[:4], "big")) % 2**32 < _ROUNDS


def _size_by_spacing(file: BinaryIO, stated: int) -> int:
    """Return the page size at whose spacing frames continue each other; `stated` if there is none."""
    sizes: tuple[int, ...] = (stated, *SIZES)
    for size in sizes:
        if next(_continued(file, _heads(file, size), size), None) is not None:
            return size
    return stated


def _content(file: BinaryIO, number: int, size: int) -> bytes:
    file.seek(_offset(number, size))
    return file.read(size)


def _offset(number: int, size: int) -> int:
    return WAL_HEADER + number * (FRAME_HEADER + size) + FRAME_HEADER


def _sums(head: bytes, content: bytes, order: str, before: Sums) -> Sums:
    return checksum(content, order, checksum(head[:8], order, before))


def _stated(head: bytes) -> Sums:
    return _two_words(head, 16)


def checksum(content: bytes, order: str, before: Sums) -> Sums:
    """Return the log's running checksum over `content`, a multiple of 8 bytes."""
    one, two = before
    words = struct.unpack(f"{order}{len(content) // 4}I", content)
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


def committed_by_index(index: Path, salt: bytes) -> int:
    """Return how many frames of the round with `salt` were committed, as the index (`-shm`) says; 0 if it cannot tell.

    SQLite writes the number after the frames are on the disk: so there were at least as many. Raises OSError.
    """
    head = _index_head(index)
    return 0 if head is None or head[32:40] != salt else _committed(head)


def missing_frames(path: Path) -> int:
    """Return how many committed frames a database lacks whose log is missing, as its index says; 0 if it cannot tell.

    Raises OSError.
    """
    log, index = (path.with_name(path.name + ending) for ending in ("-wal", "-shm"))
    head = None if log.exists() and log.stat().st_size > WAL_HEADER else _index_head(index)
    written = b"" if head is None else head[2 * _INDEX_HEADER :]
    return 0 if head is None or len(written) < 4 else max(0, _committed(head) - int.from_bytes(written, sys.byteorder))


def _committed(head: bytes) -> int:
    return int.from_bytes(head[16:20], sys.byteorder)


def _index_head(index: Path) -> bytes | None:
    """Return both copies of the index's header and the number of frames written back; None if it is not intact."""
    if not index.is_file() or _is_open_here(index):
        return None
    head = index.read_bytes()[: 2 * _INDEX_HEADER + 4]
    one, two = head[:_INDEX_HEADER], head[_INDEX_HEADER : 2 * _INDEX_HEADER]
    order = "<" if sys.byteorder == "little" else ">"
    intact = len(two) == _INDEX_HEADER and one == two
    if not intact or checksum(one[:40], order, (0, 0)) != struct.unpack(f"{order}2I", one[40:48]):
        return None
    return head


def _is_open_here(path: Path) -> bool:
    """Return whether this process has the file open: to open and close it again would drop SQLite's locks on it."""
    return not _OPEN.is_dir() or any(_is_same(fd, path) for fd in _OPEN.iterdir())


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # the listing's own descriptor
        return False


def _two_words(data: bytes, at: int) -> Sums:
    return int.from_bytes(data[at : at + 4], "big"), int.from_bytes(data[at + 4 : at + 8], "big")


def _length(file: BinaryIO) -> int:
    return file.seek(0, 2)
