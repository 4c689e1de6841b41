"""The tables on PostgreSQL, inside one transaction: two exchanges with the server for a group of sync events, four for
one with new events.

`begin` locks the group's devices and reads at once what its submissions will ask for. What they put is kept back and
sent at the end, one statement a table. Whatever was not foreseen is asked for by itself, after what it could see has
been sent.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pisync_receiver.errors import StoreUnusable
from pisync_receiver.health import Crossing, Health
from pisync_receiver.store.postgres.connection import Link
from pisync_receiver.store.postgres.exchange import Exchange
from pisync_receiver.store.postgres.foresight import Foresight
from pisync_receiver.store.postgres.rows import encode
from pisync_receiver.store.queries import queries
from pisync_receiver.store.types import EventBatch, Submission
from pisync_receiver.store.writing.tables import HOUR_MS, Key, Row

_NUMBERED: Final = ("insert_event", "insert_carried", "insert_origin")
"""Statements whose rows name events of this commit; they go last, when the events have their ids."""
_KEPT_BACK: Final = {
    "put_device": "devices",
    "put_stream": "streams",
    "put_boot": "boots",
    "insert_event": "events",
    "insert_carried": "carried",
    "insert_origin": "origins",
    "insert_rejected": "rejected",
    "insert_sync_event": "sync_events",
    "insert_crossing": "crossings",
}
"""Statements that are sent at the end, and the table that each changes."""
_CHANGES: Final = ("put_device", "put_stream", "put_boot", "delete_gap")
"""Statements that change rows that are there: they are told whose, so that no part of other devices is looked at, which
may be on a server that is away."""
_DEVICE_AT: Final = {"insert_event": 1, "insert_sync_event": 1, "put_device": -1}
"""Where in a statement's rows the device stands; otherwise it is the first value."""
_READS: Final = {
    "stored_versions": ("events",),
    "carried_versions": ("carried", "events"),
    "copies": ("origins", "events"),
    "has_copies": ("origins",),
    "rejected_versions": ("rejected",),
    "best_before": ("events",),
    "best_after": ("events",),
    "boots_overlap": ("boots",),
    "failures_after": ("sync_events",),
}
"""What a query that names its device first could see of that which is kept back."""


class PostgresTables:
    """`store.writing.tables.Tables` says what each call means."""

    def __init__(self, connection: Link, *, mark: tuple[str, int], timeout_ms: int) -> None:
        """`mark` is the writer and the number of its group, which is looked for after a lost commit."""
        self._connection = connection
        self._mark = mark
        self._timeout_ms = timeout_ms
        self._sql = queries("postgres", "intake")
        self._known: dict[tuple[Any, ...], Row | None] = {}
        self._rows: dict[str, list[Row]] = defaultdict(list)
        self._touched: set[tuple[str, object]] = set()
        self._sync_event_ids: list[int] = []
        self._ids = 0
        self._ids_taken = 0
        self._before_first_id = 0
        self._hours: dict[int, list[int]] = {}
        self._batches = False

    def begin(self, submissions: Sequence[Submission]) -> None:
        """Open the transaction, lock the devices, and read ahead."""
        foresight = Foresight(submissions)
        self._batches = any(isinstance(one, EventBatch) for one in submissions)
        while not self._begin(foresight):
            self._connection.execute("ROLLBACK")
            self._connection.execute(self._sql["add_writer"], self._mark[:1])
        while foresight.lacks_devices():
            with Exchange(self._connection) as exchange:
                foresight.add_devices(exchange)
                foresight.ask(exchange)
        self._known = foresight.known()
        self._sync_event_ids = foresight.sync_event_ids()

    def one(self, query: str, *values: object) -> Row | None:
        if self._could_see(query, values):
            self._send()
        elif (query, *values) in self._known:
            return self._known[query, *values]
        row = self._connection.execute(self._sql[query], values).fetchone()
        if row is None and query == "device":
            # Locked by being made, unless another made it while this waited: then it is read again, and locked.
            made = self._connection.execute(self._sql["add_devices"], ([values[0]],)).fetchone()
            return None if made else self.one(query, *values)
        return row

    def all(self, query: str, *values: object) -> list[Row]:
        if self._could_see(query, values):
            self._send()
        return self._connection.execute(self._sql[query], values).fetchall()

    def put(self, statement: str, rows: Iterable[Row]) -> None:
        given = list(rows)
        if not given:
            return
        table = _KEPT_BACK.get(statement)
        if table is None:
            with Exchange(self._connection) as exchange:
                self._ask(exchange, statement, given)
            return
        self._rows[statement] += given
        place = _DEVICE_AT.get(statement, 0)
        self._touched.update([(table, row[place]) for row in given])
        if statement == "put_boot":
            self._know_boots(given)
        elif statement == "insert_sync_event":
            self._know_keys(given)

    def key(self, device_id: str, stream: str, number: int) -> Key:
        return (device_id, stream)

    def begin_stream(self, device_id: str, stream: str, now_ms: int) -> Key:
        return (device_id, stream)

    def event_ids(self, count: int, received_ms: int) -> range:
        """Places in this commit, as negative numbers; the ids themselves are taken as late as can be."""
        first = self._ids + 1
        self._ids += count
        self._hours.setdefault(received_ms // HOUR_MS, [first, first])[1] = self._ids
        return range(-first, -self._ids - 1, -1)

    def sync_event_id(self, device_id: str) -> int:
        return self._sync_event_ids.pop()

    def crossed(self, device_id: str, crossing: Crossing, at_ms: int, health: Health) -> None:
        row = (
            device_id,
            crossing,
            at_ms,
            health.consecutive_failures,
            health.failing_since_ms,
            health.last_errors,
        )
        self.put("insert_crossing", [row])

    def commit(self) -> None:
        """Send what is left, and commit. Where the connection is lost in here, it may be committed or not."""
        if self._ids or any(statement in self._rows for statement in _NUMBERED):
            self._send()
        with Exchange(self._connection) as exchange:
            self._ask_kept_back(exchange)
            if self._hours:
                base = self._before_first_id
                hours = [(hour, base + first, base + last) for hour, (first, last) in self._hours.items()]
                exchange.ask(self._sql["put_arrivals"], [list(column) for column in zip(*hours, strict=True)])
            elif self._batches:
                # Nothing is new, perhaps because another server committed its part of an earlier try: count that.
                exchange.ask(self._sql["take_event_ids"], (0,))
            exchange.ask("COMMIT")

    def _ask_kept_back(self, exchange: Exchange) -> None:
        """One statement a table."""
        rows, self._rows = self._rows, defaultdict(list)
        for statement, lines in rows.items():
            self._ask(exchange, statement, lines)

    def _ask(self, exchange: Exchange, statement: str, rows: list[Row]) -> None:
        values: list[object] = [encode(rows)]
        if statement in _CHANGES:
            values.append(sorted({row[_DEVICE_AT.get(statement, 0)] for row in rows}))
        exchange.ask(self._sql[statement], values)

    def _begin(self, foresight: Foresight) -> bool:
        """Whether this writer is known, and the transaction open with its mark."""
        with Exchange(self._connection) as exchange:
            exchange.ask("BEGIN")
            exchange.ask(self._sql["begin"], (str(self._timeout_ms),))
            marked = exchange.ask(self._sql["mark"], self._mark)
            foresight.ask(exchange)
        return marked.count == 1

    def _could_see(self, query: str, values: tuple[object, ...]) -> bool:
        tables = _READS.get(query)
        return tables is not None and any((table, values[0]) in self._touched for table in tables)

    def _know_boots(self, rows: list[Row]) -> None:
        for device_id, stream, boot_id, epoch_ms, _ in rows:
            name = ("boot", device_id, stream, boot_id)
            known = self._known.get(name)
            self._known[name] = (epoch_ms if known is None else min(epoch_ms, known[0]),)

    def _know_keys(self, rows: list[Row]) -> None:
        for *stored, key in rows:
            if key is not None:
                device_id = stored[_DEVICE_AT["insert_sync_event"]]
                self._known["sync_event_by_key", device_id, key] = tuple(stored)

    def _send(self) -> None:
        """Everything kept back."""
        numbered = {statement: self._rows.pop(statement) for statement in _NUMBERED if statement in self._rows}
        wanted = self._ids - self._ids_taken
        encoded = {statement: encode(lines) for statement, lines in numbered.items()}
        taken = None
        with Exchange(self._connection) as exchange:
            self._ask_kept_back(exchange)
            if wanted:
                taken = exchange.ask(self._sql["take_event_ids"], (wanted,))
        if taken is not None:
            # The counter stays locked until the commit, so what is taken later follows on without a gap.
            (before,) = _only(taken.rows)
            self._before_first_id = before - self._ids_taken
            self._ids_taken = self._ids
        for statement, body in encoded.items():
            # By themselves, because they are long: a text with the values written into it would be copied again.
            stored = self._connection.execute(self._sql[statement], (body, self._before_first_id)).rowcount
            if statement == "insert_event" and stored != len(numbered[statement]):
                raise StoreUnusable(
                    "an event that is new to its stream's account is stored already; nothing was changed"
                )


def _only(rows: Sequence[Row]) -> Row:
    (row,) = rows
    return row
