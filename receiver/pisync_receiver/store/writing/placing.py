"""One batch that does not simply go on, looked at seq by seq against what is there.

Under each seq the first version stands: an event, an event that is stored elsewhere, or a rejection. The same version
again is a duplicate (a rejection is given again); any other is a conflict, kept beside it once.
"""

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final

from pisync_common.models import Rejection
from pisync_receiver.store.content import Content, body_of, canonical, canonical_body, content_of, same
from pisync_receiver.store.ranges import runs
from pisync_receiver.store.types import EventBatch, IncomingEvent, InvalidEvent
from pisync_receiver.store.writing import streams
from pisync_receiver.store.writing.states import Device, Group, Stream

CONFLICT: Final = "conflict"
_DETAIL: Final = (
    "another event stands under this seq; both are kept. Two devices may share one identity, as after a card was cloned"
)

_Ref = int
"""A stored event: its id, or minus its seq where this batch stores it and it has no id yet."""


class _Rejected:
    """A version that was rejected, and the answer to it."""

    __slots__ = ("rejection", "version")

    def __init__(self, rejection: Rejection, body: str) -> None:
        self.rejection = rejection
        self.version = canonical_body(body)


class Placing:
    """Use once: `place`, then read `stored`, `duplicates`, `rejections`."""

    def __init__(self, group: Group, stream: Stream, device: Device, batch: EventBatch) -> None:
        self._group = group
        self._stream = stream
        self._device = device
        self._batch = batch
        self.duplicates = 0
        self.rejections: list[Rejection] = []
        self._fresh: dict[int, IncomingEvent] = {}
        self._carried: dict[int, _Ref] = {}
        self._rejected_rows: list[tuple[Any, ...]] = []
        self._invalid: set[int] = set()
        self._held: dict[int, Content | _Rejected] = {}
        self._conflicts: dict[int, list[_Rejected]] = defaultdict(list)
        self._elsewhere: dict[tuple[str, int], list[tuple[_Ref, Content]]] = defaultdict(list)

    @property
    def stored(self) -> int:
        return len(self._fresh)

    def place(self) -> None:
        """Store what is new and account for all."""
        self._look_up_held()
        self._look_up_elsewhere()
        for event in self._batch.events:
            self._place_event(event)
        for bad in self._batch.invalid:
            self._place_invalid(bad)
        self._write()

    # What is there already.

    def _look_up_held(self) -> None:
        """What stands under the batch's seqs."""
        named = chain((event.seq for event in self._batch.events), (bad.seq for bad in self._batch.invalid))
        seen = {seq for seq in named if seq <= self._stream.highest}
        if not seen:
            return
        for query in ("stored_versions", "carried_versions"):
            for seq, _, *content in self._select(query, *self._stream.key, seqs=seen):
                self._held[seq] = tuple(content)
        for seq, code, detail, body in self._select("rejected_versions", *self._stream.key, seqs=seen):
            rejected = _Rejected(Rejection(seq=seq, code=code, detail=detail), body)
            if code == CONFLICT:
                self._conflicts[seq].append(rejected)
            else:
                self._held[seq] = rejected

    def _look_up_elsewhere(self) -> None:
        """What is stored of the events that the batch's events may be carried from, or copies of which are stored."""
        device_id, here = self._batch.device_id, self._batch.stream
        seqs: dict[str, set[int]] = defaultdict(set)
        for event in self._batch.events:
            if event.origin is not None:
                seqs[event.origin.stream].add(event.origin.seq)
        for name, wanted in seqs.items():
            if (origin := self._group.stream(device_id, name)) is not None:
                self._note("stored_versions", *origin.key, name=name, seqs=wanted)
                self._note("carried_versions", *origin.key, name=name, seqs=wanted)
        if streams.has_copies(self._group, device_id, here):
            seqs[here].update(event.seq for event in self._batch.events)
        for name, wanted in seqs.items():
            self._note("copies", device_id, name, name=name, seqs=wanted)

    def _note(self, query: str, *keys: object, name: str, seqs: Iterable[int]) -> None:
        for seq, event_id, *content in self._select(query, *keys, seqs=seqs):
            self._elsewhere[name, seq].append((event_id, tuple(content)))

    def _select(self, query: str, *keys: object, seqs: Iterable[int]) -> list[tuple[Any, ...]]:
        return self._group.tables.all(query, *keys, sorted(seqs))

    # One event after the other.

    def _place_event(self, event: IncomingEvent) -> None:
        content = content_of(event)
        held = self._held.get(event.seq)
        if held is None and self._accounted(event.seq):
            self.duplicates += 1  # its content was archived, so nothing is left to compare it with
        elif held is None:
            self._place_new(event, content)
        elif isinstance(held, _Rejected):
            self._answer_again(held, event.seq, canonical(content), body_of(event))
        elif same(held, content):
            self.duplicates += 1
        else:
            self._conflict(event.seq, canonical(content), body_of(event))

    def _accounted(self, seq: int) -> bool:
        """Whether the stream's account has a seq under which nothing is held."""
        if seq <= self._stream.watermark or seq > self._stream.highest:
            return seq <= self._stream.watermark
        gap = self._group.tables.one("gap_around", *self._stream.key, seq)
        return gap is None or seq > gap[1]

    def _place_new(self, event: IncomingEvent, content: Content) -> None:
        self._held[event.seq] = content
        if (ref := self._stored_elsewhere(event, content)) is not None:
            self._carried[event.seq] = ref
            self.duplicates += 1
            return
        self._fresh[event.seq] = event
        self._elsewhere[self._batch.stream, event.seq].append((-event.seq, content))
        if event.origin is not None:
            self._elsewhere[event.origin.stream, event.origin.seq].append((-event.seq, content))

    def _stored_elsewhere(self, event: IncomingEvent, content: Content) -> _Ref | None:
        places = [(self._batch.stream, event.seq)]
        if event.origin is not None:
            places.append((event.origin.stream, event.origin.seq))
        for place in places:
            for ref, stored in self._elsewhere.get(place, ()):
                if same(stored, content):
                    return ref
        return None

    def _place_invalid(self, bad: InvalidEvent) -> None:
        version = canonical_body(bad.body)
        held = self._held.get(bad.seq)
        if held is None and self._accounted(bad.seq):
            self.duplicates += 1
        elif held is None:
            rejection = Rejection(seq=bad.seq, code=bad.code, detail=bad.detail)
            self._held[bad.seq] = _Rejected(rejection, bad.body)
            self._invalid.add(bad.seq)
            self._reject(rejection, bad.body)
        elif isinstance(held, _Rejected):
            self._answer_again(held, bad.seq, version, bad.body)
        elif canonical(held) == version:
            self.duplicates += 1
        else:
            self._conflict(bad.seq, version, bad.body)

    def _answer_again(self, held: _Rejected, seq: int, version: str, body: str) -> None:
        if held.version == version:
            self.rejections.append(held.rejection)
        else:
            self._conflict(seq, version, body)

    def _conflict(self, seq: int, version: str, body: str) -> None:
        for known in self._conflicts[seq]:
            if known.version == version:
                self.rejections.append(known.rejection)
                return
        rejection = Rejection(seq=seq, code=CONFLICT, detail=_DETAIL)
        self._conflicts[seq].append(_Rejected(rejection, body))
        self._reject(rejection, body)
        self._stream.conflicts += 1
        self._device.conflicts += 1
        self._device.cloned(self._batch.received_ms)

    def _reject(self, rejection: Rejection, body: str) -> None:
        self.rejections.append(rejection)
        row = (*self._stream.key, rejection.seq, rejection.code, rejection.detail, body, self._batch.received_ms)
        self._rejected_rows.append(row)

    # Into the database.

    def _write(self) -> None:
        group, stream = self._group, self._stream
        ids = self._insert_fresh()
        origins = [
            (self._batch.device_id, event.origin.stream, event.origin.seq, ids[seq])
            for seq, event in self._fresh.items()
            if event.origin is not None
        ]
        carried = [(*stream.key, seq, ids[-ref] if ref < 0 else ref) for seq, ref in self._carried.items()]
        group.tables.put("insert_origin", origins)
        group.tables.put("insert_carried", carried)
        group.tables.put("insert_rejected", self._rejected_rows)
        stream.carried += len(carried)
        stream.rejected += len(self._invalid)
        streams.account(group, stream, sorted({*self._fresh, *self._carried, *self._invalid}))

    def _insert_fresh(self) -> dict[int, int]:
        """Store the new events run by run, as others may stand between the runs; return their ids by seq."""
        ids: dict[int, int] = {}
        for first, last in runs(sorted(self._fresh)):
            run = [self._fresh[seq] for seq in range(first, last + 1)]
            ids.update(
                zip(range(first, last + 1), streams.insert(self._group, self._stream, self._batch, run), strict=True)
            )
        return ids
