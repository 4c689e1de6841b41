"""What a group's submissions will ask for, read in one exchange with the server while their devices are locked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pisync_receiver.store.postgres.exchange import Answer, Exchange
from pisync_receiver.store.queries import queries
from pisync_receiver.store.types import EventBatch, Submission, SyncReport
from pisync_receiver.store.writing.streams import OVERLAP_MS
from pisync_receiver.store.writing.tables import Row


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ahead:
    """A query for many at once, and the query for one that it answers beforehand."""

    query: str
    width: int
    """How many of a row's values say what was asked for; the rest is the answer."""
    more: tuple[object, ...] = ()
    """What is asked with each."""


_AHEAD: Final = {
    "find_streams": _Ahead(query="stream", width=2),
    "find_copies": _Ahead(query="has_copies", width=2),
    "find_boots": _Ahead(query="boot", width=3),
    "find_overlaps": _Ahead(query="boots_overlap", width=5, more=(OVERLAP_MS,)),
    "find_keys": _Ahead(query="sync_event_by_key", width=2),
}
_YES: Final = (1,)
"""The answer of a query that only says whether."""


class Foresight:
    """Ask inside an exchange, as often as devices are missing; then take what is known."""

    def __init__(self, submissions: Sequence[Submission]) -> None:
        self._sql = queries("postgres", "intake")
        batches = [one for one in submissions if isinstance(one, EventBatch)]
        reports = [one for one in submissions if isinstance(one, SyncReport)]
        self._devices = sorted({one.device_id for one in batches} | {one.device_id for one in reports})
        self._reports = len(reports)
        self._wanted: dict[str, list[tuple[Any, ...]]] = {
            "find_streams": _distinct((one.device_id, one.stream) for one in batches),
            "find_copies": _distinct((one.device_id, one.stream) for one in batches if one.events),
            "find_boots": _distinct(_boots(batches)),
            "find_overlaps": _distinct(_seen(batches)),
            "find_keys": _distinct((one.device_id, one.idempotency_key) for one in reports if one.idempotency_key),
        }
        self._runs = _distinct(
            (one.device_id, one.stream, one.events[0].seq, one.events[-1].seq) for one in batches if _may_estimate(one)
        )
        self._asked: dict[str, Answer] = {}

    def ask(self, exchange: Exchange) -> None:
        """Lock the devices that there are, and read."""
        if self._devices:
            self._ask(exchange, "lock_devices", self._devices)
        for name, wanted in self._wanted.items():
            if wanted:
                self._ask(exchange, name, *_columns(wanted), *_AHEAD[name].more)
        if self._runs:
            self._ask(exchange, "find_best", *_columns(self._runs))
        if self._reports:
            self._ask(exchange, "take_sync_event_ids", self._reports)

    def lacks_devices(self) -> bool:
        """Whether rows have to be made before all devices can be locked."""
        if not self._devices:
            return False
        self._locked = {row[0]: row[1:] for row in self._asked["lock_devices"].rows}
        return len(self._locked) < len(self._devices)

    def add_devices(self, exchange: Exchange) -> None:
        """Make the rows that are missing; whoever asks for them elsewhere waits for this transaction's end."""
        self._ask(exchange, "add_devices", [device for device in self._devices if device not in self._locked])

    def known(self) -> dict[tuple[Any, ...], Row | None]:
        """The answers by query and values; None where there is no row."""
        known: dict[tuple[Any, ...], Row | None] = {}
        if self._devices:
            known |= {("device", device): row for device, row in self._locked.items()}
        for name, wanted in self._wanted.items():
            ahead = _AHEAD[name]
            known |= {(ahead.query, *values, *ahead.more): None for values in wanted}
            for row in self._asked[name].rows if wanted else ():
                known[ahead.query, *row[: ahead.width], *ahead.more] = row[ahead.width :] or _YES
        for row in self._asked["find_best"].rows if self._runs else ():
            device_id, stream, first, last, before, after = row
            known["best_before", device_id, stream, first] = None if before is None else (before,)
            known["best_after", device_id, stream, last] = None if after is None else (after,)
        return known

    def sync_event_ids(self) -> list[int]:
        """One for each report, the next to be used at the end."""
        if not self._reports:
            return []
        return sorted((number for (number,) in self._asked["take_sync_event_ids"].rows), reverse=True)

    def _ask(self, exchange: Exchange, name: str, *values: object) -> None:
        self._asked[name] = exchange.ask(self._sql[name], values)


def _may_estimate(batch: EventBatch) -> bool:
    """Whether a best time may have to be found between its neighbours': no clock was right, another boot sent this."""
    boot_id = None if batch.sent is None else batch.sent.boot_id
    return any(not event.clock_synced and (event.boot_id is None or event.boot_id != boot_id) for event in batch.events)


def _boots(batches: Iterable[EventBatch]) -> Iterable[tuple[str, str, str]]:
    for batch in batches:
        boots = {event.boot_id for event in batch.events}
        if batch.sent is not None:
            boots.add(batch.sent.boot_id)
        for boot_id in boots - {None}:
            assert boot_id is not None
            yield batch.device_id, batch.stream, boot_id


def _seen(batches: Iterable[EventBatch]) -> Iterable[tuple[str, str, str, int, int]]:
    for batch in batches:
        if (sent := batch.sent) is not None and (batch.events or batch.invalid):
            epoch_ms = batch.received_ms - sent.boottime_ms
            yield batch.device_id, batch.stream, sent.boot_id, epoch_ms, sent.boottime_ms


def _distinct(values: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return list(dict.fromkeys(values))


def _columns(rows: list[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
