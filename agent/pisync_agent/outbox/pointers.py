"""The outbox's row of pointers, with a checksum, so that a broken file cannot pass off a wrong number as true."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from pisync_agent.outbox.database import BrokenOutbox, integer, queries, text
from pisync_common.sqlite import Connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointers:
    """See `0001_outbox.sql`, table pointers."""

    stream: str
    delivered: int = 0
    watermark: int = 0
    trimmed: int = 0
    trimmed_offset: int = 0

    def row(self) -> tuple[str, int, int, int, int, int]:
        """Return its columns, checksum last."""
        values = (self.stream, self.delivered, self.watermark, self.trimmed, self.trimmed_offset)
        return (*values, checksum(values))

    @classmethod
    def from_row(cls, row: Sequence[Any] | None) -> Self:
        """Raises BrokenOutbox if the row is missing or does not match its checksum."""
        if row is None or row[5] != checksum(row[:5]):
            raise BrokenOutbox("its row of pointers cannot be read")
        return cls(
            stream=text(row[0]),
            delivered=integer(row[1]),
            watermark=integer(row[2]),
            trimmed=integer(row[3]),
            trimmed_offset=integer(row[4]),
        )


def checksum(values: Sequence[Any]) -> int:
    """Return the checksum of a row of pointers."""
    return zlib.crc32("|".join(map(str, values)).encode("utf-8", "surrogateescape"))


def load(connection: Connection) -> Pointers:
    return Pointers.from_row(connection.execute(queries()["pointers"]).fetchone())


def save(connection: Connection, pointers: Pointers) -> None:
    connection.execute(queries()["update_pointers"], pointers.row())


def insert(connection: Connection, pointers: Pointers) -> None:
    """Write the row of a new file."""
    connection.execute(queries()["insert_pointers"], pointers.row())
