"""The erasures file: what is erased, remembered outside the database and its backups."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from pisync_common.errors import RuleError
from pisync_common.times import format_ms, parse_ms
from pisync_receiver.domain.erasure import Erased
from pisync_receiver.errors import ErasuresFileUnusable
from pisync_receiver.logs import fields

log = logging.getLogger(__name__)

Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]+$", max_length=128)]


_BEGIN: Final = b'{"keys":'


class Line(Struct, frozen=True, kw_only=True):
    """A line of the erasures file: one learner of one home."""

    keys: list[Hex]
    """The database's keys; `learner` and `id` are HMAC-SHA256 with the key of their database."""
    learner: Hex
    id: Hex
    receipt: Hex
    time: str


class ErasuresFile:
    """Every erasure, one JSON object a line, only ever appended to. Several receivers may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Line]:
        """Return its lines, none if there is no file. Damaged lines are left out. Raises ErasuresFileUnusable."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable("read", error) from error
        given = [line for line in text.split(b"\n") if line.strip(b"\0")]
        found = [line for line in map(_line, given) if line is not None]
        if given and not found and not text.startswith(_BEGIN):
            raise ErasuresFileUnusable(
                f"{self.path} is not an erasures file; nothing was changed; put back a copy of it, or name another "
                "file as erasures_file"
            )
        if len(found) < len(given):  # a power cut tears the last line, before the erasure is answered
            log.error("lines of the erasures file are damaged", extra=fields(lines=len(given) - len(found)))
        return found

    def append(self, keys: Iterable[bytes], rows: Iterable[Erased]) -> None:
        """Add lines, durably. Raises ErasuresFileUnusable."""
        names = [key.hex() for key in keys]
        lines = [
            Line(keys=names, learner=row.learner, id=row.id, receipt=row.receipt, time=format_ms(row.asked_ms))
            for row in rows
        ]
        text = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # a failure takes back to `size`, and no one else's line
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                text = b"\n" + text if torn else text
                try:
                    if os.write(descriptor, text) != len(text):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)
            if size == 0:
                _sync_folder(self.path.parent)
        except OSError as error:
            raise self._unusable("written", error) from error

    def _unusable(self, doing: str, error: OSError) -> ErasuresFileUnusable:
        return ErasuresFileUnusable(
            f"the erasures file {self.path} cannot be {doing}: {error.strerror or error}; nothing was erased; let the "
            "receiver's user write there, or name another file as erasures_file"
        )


def _line(text: bytes) -> Line | None:
    try:
        line = msgspec.json.decode(text, type=Line)
        parse_ms(line.time)
        for key in line.keys:
            bytes.fromhex(key)
    except (ValueError, RuleError):  # msgspec's errors are ValueErrors
        return None
    return line


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
