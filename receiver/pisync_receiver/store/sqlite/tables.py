"""The tables on SQLite, inside one transaction of the one writer: everything is carried out at once."""

import json
from collections.abc import Iterable
from typing import Any

from pisync_receiver.health import Crossing, Health
from pisync_receiver.store.queries import queries
from pisync_receiver.store.sqlite.connection import Connection
from pisync_receiver.store.writing.tables import HOUR_MS, Key, Row


class SqliteTables:
    """`store.writing.tables.Tables` says what each call means."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sql = queries("sqlite", "intake")
        self._next_event: int | None = None
        self._next_sync_event: int | None = None
        self._arrivals: dict[int, list[int]] = {}

    def one(self, query: str, *values: object) -> Row | None:
        row: Row | None = self._connection.execute(self._sql[query], values).fetchone()
        return row

    def all(self, query: str, *values: object) -> list[Row]:
        wanted = [json.dumps(value) if isinstance(value, list) else value for value in values]
        return self._connection.execute(self._sql[query], wanted).fetchall()

    def put(self, statement: str, rows: Iterable[Row]) -> None:
        self._connection.executemany(self._sql[statement], rows)

    def key(self, device_id: str, stream: str, number: int) -> Key:
        return (number,)

    def begin_stream(self, device_id: str, stream: str, now_ms: int) -> Key:
        number: Any = self._connection.execute(self._sql["insert_stream"], (device_id, stream, now_ms)).fetchone()[0]
        return (number,)

    def event_ids(self, count: int, received_ms: int) -> range:
        first = self._next_event
        if first is None:
            first = 1 + (self._connection.execute(self._sql["last_event"]).fetchone()[0] or 0)
        self._next_event = first + count
        ids = self._arrivals.setdefault(received_ms // HOUR_MS, [first, first])
        ids[1] = first + count - 1
        return range(first, first + count)

    def crossed(self, device_id: str, crossing: Crossing, at_ms: int, health: Health) -> None:
        """The log tells it; no worker reads this database."""

    def sync_event_id(self, device_id: str) -> int:
        number = self._next_sync_event
        if number is None:
            number = 1 + (self._connection.execute(self._sql["last_sync_event"]).fetchone()[0] or 0)
        self._next_sync_event = number + 1
        return number

    def finish(self) -> None:
        """Write every hour that something arrived in."""
        arrivals = [(hour, *ids) for hour, ids in self._arrivals.items()]
        self._connection.executemany(self._sql["put_arrivals"], arrivals)
