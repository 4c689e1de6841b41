"""The receiver's real store, for tests of both sides in one process: requests are decoded, stored and answered as the
receiver does, on a disk whose power can be cut.

Each receipt is checked against the database before it is returned, and what it promised is remembered.
"""

import gzip
import json
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from pisync_common.models import Receipt
from pisync_receiver.api.decoding import decode_batch, decode_sync_event
from pisync_receiver.domain.records import sync_event_record
from pisync_receiver.domain.rows import StoredSyncEvent
from pisync_receiver.domain.submissions import EventBatch, Submission, SyncEvent
from pisync_receiver.errors import StoreUnusable
from pisync_receiver.http.responses import json_answer
from pisync_receiver.store.sqlite.store import SqliteStore, open_store
from tests.support.blocking import BlockingStore
from tests.support.power_cut import Connection, Disk, PowerCut

_EPOCH_MS: Final = 1_795_424_400_000


@dataclass(frozen=True)
class Promise:
    """An event that a receipt accounted for."""

    stream: str
    seq: int
    number: int


class Cloud:
    """The receiver's store, and what is true about it."""

    def __init__(self, home: Path, *, random: Random, connection: type[Connection] = Connection) -> None:
        self._path = home / "receiver.db"
        self.disk = Disk(random=random, connection=connection)
        self.promised: set[Promise] = set()
        self._now_ms = _EPOCH_MS
        self._copies: list[tuple[Path, set[Promise]]] = []
        self.store = self._open()
        self._is_open = True

    def _open(self) -> BlockingStore:
        async def opening() -> SqliteStore:
            return open_store(self._path, create=True, connect=self.disk.connect, now_ms=lambda: self._now_ms)

        return BlockingStore(opening)

    def post_batch(self, body: bytes) -> bytes:
        """Store a batch as the receiver's handler does; return the answer's body. Raises PowerCut."""
        batch = decode_batch(gzip.decompress(body), self._tick())
        receipt = self._write(batch)
        assert isinstance(receipt, Receipt), receipt
        self._check(batch, receipt)
        return json_answer(receipt).body

    def post_sync_event(self, body: bytes, key: str) -> bytes:
        event, claimed_ms = decode_sync_event(body)
        stored = self._write(
            SyncEvent(
                device_id=event.device_id,
                timestamp=event.timestamp,
                claimed_ms=claimed_ms,
                total_files_synced=event.total_files_synced,
                total_errors=event.total_errors,
                internet_speed=event.internet_speed,
                errors={str(name): count for name, count in event.errors.items()},
                idempotency_key=key,
                received_ms=self._tick(),
            )
        )
        assert isinstance(stored, StoredSyncEvent), stored
        return json_answer(sync_event_record(stored)).body

    def restart(self, *, power_lost: bool) -> None:
        """Kill the receiver and start it again; everything it promised must be there."""
        self.disk.restart(power_lost=power_lost)
        self.store.close()
        try:
            self.store = self._open()
        except StoreUnusable as error:
            self._is_open = False
            raise AssertionError("what was promised cannot be opened") from error
        self._check_promises()

    def copy(self) -> None:
        """Keep a copy of the database as it is now."""
        self.store.close()
        target = self._path.with_name(f"copy-{len(self._copies)}.db")
        shutil.copyfile(self._path, target)
        self._copies.append((target, set(self.promised)))
        self.store = self._open()

    @property
    def copies(self) -> int:
        return len(self._copies)

    def restore(self, number: int) -> None:
        """Put a kept copy in the database's place: what came after it is gone."""
        source, promised = self._copies[number]
        self.store.close()
        self._path.unlink()
        shutil.copyfile(source, self._path)
        self.promised = set(promised)
        self.store = self._open()

    def numbers(self) -> Counter[int]:
        """How often each event is stored."""
        rows = self._ask("SELECT data FROM events")
        return Counter(json.loads(data)["n"] for (data,) in rows)

    def stands_under(self, stream: str, seq: int) -> int | None:
        """The number of the event that is stored under a seq."""
        return self._stored(stream).get(seq)

    def reports(self) -> int:
        return int(self._ask("SELECT count(*) FROM sync_events")[0][0])

    def close(self) -> None:
        if self._is_open:
            with suppress(PowerCut):
                self.store.close()
        self.disk.close()

    def _write(self, submission: Submission) -> object:
        [outcome] = self.store.write([submission])
        return outcome

    def _tick(self) -> int:
        self._now_ms += 1000
        return self._now_ms

    # What is true

    def _check(self, batch: EventBatch, receipt: Receipt) -> None:
        """A receipt is true: its events are all stored or kept as rejected, and 1 to its watermark, and no further."""
        assert (receipt.device_id, receipt.stream) == (batch.device_id, batch.stream)
        assert receipt.stored + receipt.duplicates + len(receipt.rejected) == len(batch.events) + len(batch.invalid)
        stored, refused = self._stored(batch.stream), self._rejected(batch.stream)
        accounted = stored.keys() | refused.keys()
        assert all(seq in accounted for seq in range(1, receipt.watermark + 1))
        assert receipt.watermark + 1 not in accounted
        conflicts = {rejection.seq for rejection in receipt.rejected}
        for event in batch.events:
            number = _number(event.data)
            held = refused.get(event.seq, set()) if event.seq in conflicts else {stored[event.seq]}
            assert number in held
            self.promised.add(Promise(batch.stream, event.seq, number))

    def _check_promises(self) -> None:
        streams = {promise.stream for promise in self.promised}
        stored = {stream: self._stored(stream) for stream in streams}
        refused = {stream: self._rejected(stream) for stream in streams}
        for promise in self.promised:
            kept = stored[promise.stream].get(promise.seq) == promise.number
            kept = kept or promise.number in refused[promise.stream].get(promise.seq, ())
            assert kept, f"{promise} was acknowledged and is gone"

    def _stored(self, stream: str) -> dict[int, int]:
        """Numbers by seq, those that are stored elsewhere and were carried here included."""
        own = "SELECT seq, data FROM events WHERE stream = ?1"
        carried = (
            "SELECT c.seq, e.data FROM carried AS c JOIN events AS e "
            "ON (e.device_id, e.stream, e.seq) = (c.stored_device_id, c.stored_stream, c.stored_seq) "
            "WHERE c.stream = ?1"
        )
        return {seq: _number(data) for seq, data in self._ask(f"{own} UNION ALL {carried}", (stream,))}

    def _rejected(self, stream: str) -> dict[int, set[int]]:
        sql = "SELECT seq, body FROM rejected WHERE stream = ?"
        found: dict[int, set[int]] = {}
        for seq, body in self._ask(sql, (stream,)):
            found.setdefault(seq, set()).add(json.loads(body)["data"]["n"])
        return found

    def _ask(self, sql: str, parameters: tuple[Any, ...] = ()) -> list[Any]:
        connection = self.disk.connect(self._path, readonly=True)
        try:
            return connection.execute(sql, parameters).fetchall()
        finally:
            connection.close()


def _number(data: str | None) -> int:
    return int(json.loads(data or "{}")["n"])
