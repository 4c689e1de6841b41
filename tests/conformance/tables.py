"""The database's tables past the store's code: its own keys hold the promises, and its rows are the reference's."""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest
from msgspec import Struct

from pisync_receiver.domain.rows import StoredEvent, StoredSyncEvent
from tests.support.blocking import BlockingStore, send, sync
from tests.support.submissions import HOUR, NOON, batch, event, sync_event


class Tables:
    """Plain statements on connections of their own. `refusal` is the exception that a violated key raises."""

    def __init__(self, connect: Callable[[], Any], *, placeholder: str, refusal: type[Exception]) -> None:
        self._connect = connect
        self._placeholder = placeholder
        self.refusal = refusal

    def insert(self, table: str, row: Struct, **changes: object) -> None:
        columns = {name: getattr(row, name) for name in row.__struct_fields__} | changes
        places = ", ".join([self._placeholder] * len(columns))
        self._execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", [*columns.values()])

    def select(self, columns: Sequence[str], table: str, devices: str, *, order: str) -> list[dict[str, Any]]:
        """Return a table's rows of the devices whose ids begin with `devices`."""
        owner = "stored_device_id" if table == "event_keys" else "device_id"
        sql = f"SELECT {', '.join(columns)} FROM {table} WHERE {owner} LIKE {self._placeholder} ORDER BY {order}"
        return [dict(zip(columns, row, strict=True)) for row in self._execute(sql, [f"{devices}%"])]

    def execute(self, sql: str, *values: object) -> list[Any]:
        """Run a statement of the test's own; `?` stands for a value on every engine."""
        return self._execute(sql.replace("?", self._placeholder), values)

    def all(self, columns: Sequence[str], table: str) -> list[tuple[Any, ...]]:
        """Return every row of a table."""
        return [tuple(row) for row in self._execute(f"SELECT {', '.join(columns)} FROM {table}", [])]

    def sums(self) -> dict[tuple[str, int, str, str, str], int]:
        """Return every daily sum that is not 0."""
        found = self.all(("what", "day", "site", "name", "object", "count"), "sums")
        return {(what, day, site, name, about): count for what, day, site, name, about, count in found if count}

    def _execute(self, sql: str, values: Sequence[object]) -> list[Any]:
        with closing(self._connect()) as connection, connection:
            found = connection.execute(sql, values)
            return list(found.fetchall()) if found.description else []


def folded(store: BlockingStore, tables: Tables) -> dict[tuple[str, int, str, str, str], int]:
    """Return every daily sum that is not 0, once all that groups added is in them."""
    store.fold_sums()
    return tables.sums()


class KeyConformance:
    def test_second_event_under_a_seq_is_refused(self, store: BlockingStore, tables: Tables) -> None:
        send(store, batch([1]))
        row = StoredEvent(
            "pibook-1", "stream-1", 1, "note.taken", None, None, None, None, None, event(1).occurred_at, None, None,
            None, False, None, NOON, NOON, 2, b"other",
        )  # fmt: skip
        with pytest.raises(tables.refusal):
            tables.insert("events", row, id=1000)
        tables.insert("events", row, id=1000, seq=2)

    def test_second_sync_event_under_a_key_is_refused(self, store: BlockingStore, tables: Tables) -> None:
        sync(store, sync_event(NOON, key="k"))
        row = StoredSyncEvent("pibook-1", 1000, None, "", NOON, 0, 0, 0, None, "k", NOON + HOUR)
        with pytest.raises(tables.refusal):
            tables.insert("sync_events", row)
        tables.insert("sync_events", row, idempotency_key="another")
