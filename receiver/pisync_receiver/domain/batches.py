"""Batches of progress events: each (device, stream, seq) once, and a true receipt.

A batch that is a plain continuation of its stream is new for certain. Any other is compared seq by seq with what is
there. Under each seq the first version stands: an event, an event that is stored elsewhere (carried), or a rejection.
The same version again is a duplicate (a rejection is answered again); any other is a conflict, kept beside it once.
"""

from collections.abc import Sequence
from operator import attrgetter, lt
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from pisync_common.limits import RECEIPT_RANGES
from pisync_common.models import Receipt, Rejection
from pisync_common.times import format_ms
from pisync_common.wire import origin_fields
from pisync_receiver.domain.content import keys_of, origin_key
from pisync_receiver.domain.erasure import homes_of, named
from pisync_receiver.domain.facts import CARRIED, CONFLICT, STORED, Place, Version
from pisync_receiver.domain.repairs import repair
from pisync_receiver.domain.rows import Carried, Device, Rejected, StoredEvent
from pisync_receiver.domain.sites import site_at
from pisync_receiver.domain.state import Account, State
from pisync_receiver.domain.submissions import Event, EventBatch, InvalidEvent
from pisync_receiver.domain.times import Neighbours, best_times, epochs
from pisync_receiver.errors import TooManyStreams

STREAMS_MAX: Final = 2_000
"""Streams of one device: a lifetime of cards has a few dozen."""
CONFLICTS_KEPT: Final = 10
"""Further versions kept of one seq; more are counted."""
_CONFLICT_DETAIL: Final = (
    "another event stands under this seq; both are kept. Two devices may share one identity, as after a card was cloned"
)

_seq: Final = attrgetter("seq")


def decide_batch(state: State, batch: EventBatch) -> Receipt | TooManyStreams:
    """Store what is new, account for all, and answer."""
    account = state.account(batch.device_id, batch.stream)
    device = state.contact(batch.device_id, batch.received_ms, batch.agent)
    if not batch.events and not batch.invalid:
        return _receipt(batch, account)
    if account is None:
        if device.streams >= STREAMS_MAX:
            return TooManyStreams(
                f"this device has begun {device.streams:,} streams, the most there may be; nothing was stored, and the "
                "device keeps its events. An admin must look at it: give it another device id"
            )
        account = state.begin_account(batch.device_id, batch.stream, batch.received_ms)
        device = replace(device, streams=device.streams + 1)
    account.touched = True
    account.row.last_ms = max(account.row.last_ms, batch.received_ms)
    repair(state, account, batch)
    if batch.sent is not None and account.seen_alive(batch.sent, batch.received_ms):
        device = _cloned(device, batch.received_ms)
    state.put_device(device)
    seqs = list(map(_seq, batch.events))
    if _continues(account, batch, seqs, device):
        _store(state, account, batch, batch.events)
        account.add(seqs)
        return _receipt(batch, account, stored=len(seqs))
    reconciler = Reconciler(state, account, batch)
    reconciler.run()
    rejected = tuple(sorted(reconciler.rejections, key=_seq))
    stored = len(reconciler.fresh) + reconciler.erased
    return _receipt(batch, account, stored=stored, duplicates=reconciler.duplicates, rejected=rejected)


def _continues(account: Account, batch: EventBatch, seqs: Sequence[int], device: Device) -> bool:
    """Whether every event is new for certain: ascending, past all that was seen, and never stored elsewhere."""
    if batch.invalid or device.copies or seqs[0] <= account.row.highest or not all(map(lt, seqs, seqs[1:])):
        return False
    return all(event.event_id is None and event.origin is None for event in batch.events)


class Reconciler:
    """One batch that is no plain continuation. Use once: `run`, then read what it found."""

    def __init__(self, state: State, account: Account, batch: EventBatch) -> None:
        self._state = state
        self._account = account
        self._batch = batch
        self.fresh: dict[int, Event] = {}
        self.duplicates = 0
        self.erased = 0
        """Invalid events of erased learners, which count as stored."""
        self.rejections: list[Rejection] = []
        self._new: set[int] = set()

    def run(self) -> None:
        """Place every event, then store and account for what is new."""
        for event in self._batch.events:
            self._place(event)
        for bad in self._batch.invalid:
            self._place_invalid(bad)
        events = [self.fresh[seq] for seq in sorted(self.fresh)]
        if events and (erased := _store(self._state, self._account, self._batch, events)):
            self._state.drop_places({self._at(seq) for seq in erased})
        self._account.add(sorted(self._new))

    def _place(self, event: Event) -> None:
        standing = self._standing(event.seq)
        if standing is None:
            if self._account.accounts_for(event.seq):
                self.duplicates += 1  # nothing is left of it to compare with: retention deleted it
            else:
                self._place_new(event)
        elif standing.content == event.content:
            self._repeat(standing, event.seq)
        elif self._is_erased(event.learner_home, event.learner_id):
            self.duplicates += 1
        else:
            self._conflict(event.seq, event.content, body_of(event))

    def _place_new(self, event: Event) -> None:
        place = self._at(event.seq)
        keys = keys_of(self._batch.device_id, event)
        self._new.add(event.seq)
        if (stored := self._stored_elsewhere(event, keys)) is not None:
            self._state.changes.carried.append(Carried(*place, event.content, *stored))
            self._state.add_version(place, Version(CARRIED, event.content))
            self._account.row.carried += 1
            self.duplicates += 1
            return
        self.fresh[event.seq] = event
        self._state.add_version(place, Version(STORED, event.content))
        for key in keys:
            self._state.put_key(key, place)
        if event.origin is not None:
            device = self._device()
            self._state.put_device(replace(device, copies=device.copies + 1))

    def _stored_elsewhere(self, event: Event, keys: Sequence[tuple[str, bytes]]) -> Place | None:
        """Where the same event stands already: under a key, at its origin, or as a copy of this place."""
        device_id, origin = self._batch.device_id, event.origin
        wanted = list(keys)
        if self._device().copies:
            wanted.append(origin_key(device_id, self._batch.stream, event.seq, event.content))
        for key in wanted:
            if (place := self._state.stored_at(key)) is not None:
                return place
        if origin is not None:
            place = (origin.device_id or device_id, origin.stream, origin.seq)
            for version in self._state.versions(place)[:1]:
                if version.kind in (STORED, CARRIED) and version.content == event.content:
                    return place
        return None

    def _place_invalid(self, bad: InvalidEvent) -> None:
        standing = self._standing(bad.seq)
        learner = named(bad.body) if self._state.facts.erased else None
        erased = learner is not None and self._is_erased(*learner)
        if standing is not None:
            if standing.content == bad.content:
                self._repeat(standing, bad.seq)
            elif erased:
                self.duplicates += 1
            else:
                self._conflict(bad.seq, bad.content, bad.body)
        elif self._account.accounts_for(bad.seq) or bad.seq in self._new:
            self.duplicates += 1
        elif erased:
            self._new.add(bad.seq)
            self._account.row.stored += 1
            self.erased += 1
        else:
            self._new.add(bad.seq)
            self._account.row.rejected += 1
            self._reject(Version(bad.code, bad.content, bad.detail), bad.seq, bad.body)

    def _repeat(self, standing: Version, seq: int) -> None:
        if standing.kind in (STORED, CARRIED):
            self.duplicates += 1
        else:
            self.rejections.append(_rejection(standing, seq))

    def _conflict(self, seq: int, content: bytes, body: str) -> None:
        conflicts = [version for version in self._state.versions(self._at(seq)) if version.kind == CONFLICT]
        version = Version(CONFLICT, content)
        if any(known.content == content for known in conflicts):
            self.rejections.append(_rejection(version, seq))
            return
        if len(conflicts) < CONFLICTS_KEPT:
            self._reject(version, seq, body)
        else:
            self.rejections.append(_rejection(version, seq))
        self._account.row.conflicts += 1
        device = self._device()
        self._state.put_device(_cloned(replace(device, conflicts=device.conflicts + 1), self._batch.received_ms))

    def _reject(self, version: Version, seq: int, body: str) -> None:
        place = self._at(seq)
        self._state.add_version(place, version)
        self._state.changes.rejected.append(
            Rejected(*place, version.content, version.kind, version.detail, body, self._batch.received_ms)
        )
        self.rejections.append(_rejection(version, seq))

    def _is_erased(self, home: str | None, learner_id: str | None) -> bool:
        """Whether a version that would be kept beside others may be of an erased learner."""
        if not self._state.facts.erased:
            return False
        return any(self._state.is_erased(each, learner_id) for each in homes_of(self._device(), home))

    def _standing(self, seq: int) -> Version | None:
        versions = self._state.versions(self._at(seq))
        return versions[0] if versions and versions[0].kind != CONFLICT else None

    def _at(self, seq: int) -> Place:
        return (self._batch.device_id, self._batch.stream, seq)

    def _device(self) -> Device:
        device = self._state.device(self._batch.device_id)
        assert device is not None
        return device


def _store(state: State, account: Account, batch: EventBatch, events: Sequence[Event]) -> set[int]:
    """Add rows for new events, in the order of their seq; return the seqs without a row, of erased learners."""
    device = state.device(batch.device_id)
    assert device is not None
    received_ms = batch.received_ms
    neighbours: Neighbours = (account.row.best_ms, None)
    if events[0].seq <= account.row.highest:
        neighbours = state.facts.neighbours.get((batch.device_id, batch.stream), (None, None))
    best = best_times(
        events,
        epochs=epochs(events, batch.sent, received_ms, account.known_boots()),
        received_ms=received_ms,
        neighbours=neighbours,
        sent_boot=None if batch.sent is None else batch.sent.boot_id,
    )
    sites = [site_at(device, best_ms) for best_ms, _ in best]
    rows = [
        StoredEvent(
            batch.device_id,
            batch.stream,
            event.seq,
            event.type,
            site,
            site if event.learner_home is None and event.learner_id is not None else event.learner_home,
            event.learner_id,
            event.object_id,
            event.event_id,
            event.occurred_at,
            event.recorded_at,
            event.boot_id,
            event.boottime_ms,
            event.clock_synced,
            event.data,
            received_ms,
            best_ms,
            quality,
            event.content,
        )
        for event, (best_ms, quality), site in zip(events, best, sites, strict=True)
    ]
    account.row.stored += len(rows)
    if events[-1].seq > account.row.highest:
        account.row.best_ms = rows[-1].best_ms
    erased: set[int] = set()
    if state.facts.erased:
        erased = {row.seq for row in rows if state.is_erased(row.learner_home, row.learner_id)}
        rows = [row for row in rows if row.seq not in erased]
    if rows:
        state.put_events(rows)
    return erased


def _receipt(
    batch: EventBatch,
    account: Account | None,
    *,
    stored: int = 0,
    duplicates: int = 0,
    rejected: tuple[Rejection, ...] = (),
) -> Receipt:
    return Receipt(
        device_id=batch.device_id,
        stream=batch.stream,
        stored=stored,
        duplicates=duplicates,
        rejected=rejected,
        watermark=0 if account is None else account.row.watermark,
        server_time=format_ms(batch.received_ms),
        missing=() if account is None else account.missing(RECEIPT_RANGES),
    )


def _rejection(version: Version, seq: int) -> Rejection:
    detail = _CONFLICT_DETAIL if version.kind == CONFLICT else version.detail
    return Rejection(seq=seq, code=version.kind, detail=detail)


def _cloned(device: Device, at_ms: int) -> Device:
    """The device, seen to be two devices with one identity."""
    return device if device.cloned_since_ms is not None else replace(device, cloned_since_ms=at_ms)


def body_of(event: Event) -> str:
    """An event's JSON text as it was sent, to be kept beside the version that came first."""
    fields: dict[str, Any] = {
        "seq": event.seq,
        "type": event.type,
        "id": event.event_id,
        "learner_home": event.learner_home,
        "learner_id": event.learner_id,
        "object_id": event.object_id,
        "occurred_at": event.occurred_at,
        "recorded_at": event.recorded_at,
        "boot_id": event.boot_id,
        "boottime_ms": event.boottime_ms,
        "clock_synced": event.clock_synced,
    }
    if event.origin is not None:
        fields["origin"] = origin_fields(event.origin)
    text = msgspec.json.encode({name: value for name, value in fields.items() if value is not None}).decode()
    return text if event.data is None else f'{text[:-1]},"data":{event.data}}}'
