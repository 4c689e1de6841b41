"""The outbox's one row of numbers, with a checksum: a broken file must not pass off a wrong number as the truth."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from pisync_agent.outbox.connection import Connection
from pisync_agent.outbox.queries import queries
from pisync_agent.outbox.sound import BrokenOutbox, number, text


@dataclass(frozen=True, kw_only=True, slots=True)
class Pointers:
    """See `0001_outbox.sql`, table state."""

    stream: str
    delivered: int = 0
    watermark: int = 0
    trimmed: int = 0
    trimmed_upto: int = 0

    def row(self) -> tuple[str, int, int, int, int, int]:
        """Its columns, checksum last."""
        values = (self.stream, self.delivered, self.watermark, self.trimmed, self.trimmed_upto)
        return (*values, guard(values))

    @classmethod
    def from_row(cls, row: Sequence[Any] | None) -> Self:
        """Raises BrokenOutbox if the row is missing or does not match its checksum."""
        if row is None or row[5] != guard(row[:5]):
            raise BrokenOutbox("its row of pointers cannot be read")
        return cls(
            stream=text(row[0]),
            delivered=number(row[1]),
            watermark=number(row[2]),
            trimmed=number(row[3]),
            trimmed_upto=number(row[4]),
        )


def guard(values: Sequence[Any]) -> int:
    """The checksum over a row of pointers."""
    return zlib.crc32("|".join(map(str, values)).encode("utf-8", "surrogateescape"))


def load(connection: Connection) -> Pointers:
    return Pointers.from_row(connection.execute(queries()["state"]).fetchone())


def save(connection: Connection, pointers: Pointers) -> None:
    connection.execute(queries()["update_state"], pointers.row())


def begin(connection: Connection, pointers: Pointers) -> None:
    """The first row of a new file."""
    connection.execute(queries()["insert_state"], pointers.row())
