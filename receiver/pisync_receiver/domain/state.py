"""What a group's submissions work on: devices with their sites, streams with their accounts, and the rows they add.

Rows are as they were fetched, changed in memory, and compared at the end.
"""

import json
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from msgspec.structs import replace

from pisync_common.models import Stamp
from pisync_receiver.domain import erasure
from pisync_receiver.domain.audit import audited
from pisync_receiver.domain.facts import STORED, Changes, Facts, Place, Range, StreamName, Version
from pisync_receiver.domain.rows import (
    Carried,
    Device,
    EventKey,
    Gap,
    StoredEvent,
    StoredSyncEvent,
    Stream,
)
from pisync_receiver.domain.submissions import Actor
from pisync_receiver.domain.sums import DailySums
from pisync_receiver.domain.times import BOOTTIME_MAX_MS

BOOTS_KEPT: Final = 8
"""Boots of a stream that are remembered: a device is in one at a time, and seqs of older boots are all delivered. As
many are remembered of those that are known from their events alone."""
OVERLAP_MS: Final = 60_000
"""How long two boots of one stream may seem alive at once before they are two devices: slow uploads, server clocks."""
_UNREPAIRED: Final = re.compile(r",-(?!1\])[0-9]+\]")
"""In a stream's boots: one with estimated events left."""
_Boot = tuple[str, int, int]
"""Its id, when it began, and its boot time when it last sent. Below 0, it is known from its events alone, and at -1 - n
estimated events of it may be left up to seq n (see `repairs`)."""


class Account:
    """One stream. `gaps` are the first missing ranges and those around the seqs in question, not necessarily all."""

    def __init__(self, fetched: Stream, gaps: Sequence[Range]) -> None:
        self.row = replace(fetched)
        """The stream's row as it is now."""
        self.touched = False
        self._fetched_gaps = gaps
        self._gaps = list(gaps)

    def closed(self) -> list[Range]:
        """Gaps that were fetched and are no longer as they were."""
        return [] if self._gaps == self._fetched_gaps else sorted(set(self._fetched_gaps) - set(self._gaps))

    def opened(self) -> list[Range]:
        """Gaps that were not fetched so."""
        return [] if self._gaps == self._fetched_gaps else sorted(set(self._gaps) - set(self._fetched_gaps))

    def missing(self, limit: int) -> tuple[Range, ...]:
        """The first missing ranges."""
        return tuple(self._gaps[:limit])

    def accounts_for(self, seq: int) -> bool:
        """Whether a seq is stored, carried or rejected, though nothing may be kept of it any more."""
        if seq <= self.row.watermark or seq > self.row.highest:
            return seq <= self.row.watermark
        return self._gap_at(seq) is None

    def add(self, seqs: Sequence[int]) -> None:
        """Account for seqs, ascending and distinct, that were missing or never seen before."""
        if seqs and self.row.watermark == self.row.highest == seqs[0] - 1 and seqs[-1] - seqs[0] == len(seqs) - 1:
            self.row.watermark = self.row.highest = seqs[-1]
            return
        for run in runs(seqs):
            if run[0] > self.row.highest:
                if run[0] > self.row.highest + 1:
                    self._gaps.append((self.row.highest + 1, run[0] - 1))
                self.row.highest = run[1]
            else:
                place = self._gap_at(run[0])
                assert place is not None, "a seq that is new below the highest lies in a gap"
                self._gaps[place : place + 1] = without(self._gaps[place], run)
        self.row.watermark = self._gaps[0][0] - 1 if self._gaps else self.row.highest

    def known_boots(self) -> dict[str, int]:
        """When each remembered boot began, in milliseconds since 1970."""
        alive, learned = self._boots()
        return {boot: epoch_ms for boot, epoch_ms, _ in (*learned, *alive)}

    def learn(self, boot: str, epoch_ms: int, upto: int) -> None:
        """Remember when a boot began, and that estimated events of it may be left up to a seq."""
        alive, learned = self._boots()
        others = [known for known in learned if known[0] != boot]
        self._put_boots(alive, [*others[1 - BOOTS_KEPT :], (boot, epoch_ms, -1 - upto)])

    def unrepaired(self) -> list[tuple[str, int, int]]:
        """Boots with estimated events that may be left: id, beginning, and up to which seq; the newest last."""
        if not _UNREPAIRED.search(self.row.boots):
            return []
        return [(boot, epoch_ms, -1 - mark) for boot, epoch_ms, mark in self._boots()[1] if mark < -1]

    def seen_alive(self, sent: Stamp, received_ms: int) -> bool:
        """Note that a boot sent something; return whether it and another boot were alive at the same time."""
        if sent.boottime_ms > BOOTTIME_MAX_MS:
            return False
        boot: _Boot = (sent.boot_id, received_ms - sent.boottime_ms, sent.boottime_ms)
        others: list[_Boot] = []
        alive, learned = self._boots()
        for name, epoch_ms, boottime_ms in alive:
            if name == boot[0]:
                boot = (name, min(epoch_ms, boot[1]), max(boottime_ms, boot[2]))
            else:
                others.append((name, epoch_ms, boottime_ms))
        self._put_boots([*others[1 - BOOTS_KEPT :], boot], learned)
        return any(_overlap(boot, other) for other in others)

    def _boots(self) -> tuple[list[_Boot], list[_Boot]]:
        """Return the boots that sent something, and those known from events."""
        if self.row.boots == "[]":
            return [], []
        boots: list[_Boot] = json.loads(self.row.boots)
        return [boot for boot in boots if boot[2] >= 0], [boot for boot in boots if boot[2] < 0]

    def _put_boots(self, alive: Sequence[_Boot], learned: Sequence[_Boot]) -> None:
        self.row.boots = json.dumps([*learned, *alive], separators=(",", ":"))

    def _gap_at(self, seq: int) -> int | None:
        """The place in the list of the gap that a seq lies in."""
        place = bisect_right(self._gaps, seq, key=lambda gap: gap[0]) - 1
        return place if place >= 0 and seq <= self._gaps[place][1] else None


def _overlap(one: _Boot, other: _Boot) -> bool:
    """Whether the boot that began first was still alive well after the other began."""
    first, second = sorted((one, other), key=lambda boot: boot[1])
    return first[1] + first[2] > second[1] + OVERLAP_MS


class State:
    """One group being decided. `facts` is never changed."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.changes = Changes()
        """Lists of rows to insert; add events with `put_events`. `finish` adds what is kept here otherwise."""
        self.tokens = {token.token_hash: token for token in facts.tokens} if facts.tokens else {}
        self.codes = {code.code_hash: code for code in facts.codes} if facts.codes else {}
        self.asked_to_sync: set[str] = set()
        """Devices of which something arrived, and whose answer has to ask them to deliver everything."""
        self.sums = DailySums()
        self._devices: dict[str, Device] = {}
        self._accounts: dict[StreamName, Account] = {}
        self._failures: dict[str, list[int]] = defaultdict(list)
        self._sync_events_by_key: dict[tuple[str, str], StoredSyncEvent] = {}
        self._sync_event_ids: Iterator[int] = iter(facts.sync_event_ids)
        self._places: dict[tuple[str, bytes], Place] = {}
        self._versions: dict[Place, list[Version]] = {}
        self._unseen: list[StoredEvent] = []
        self._erased: dict[tuple[str | None, str], bool] = {}

    # Devices.

    def device(self, device_id: str) -> Device | None:
        """The device as the submissions before left it."""
        return self._devices.get(device_id) or self.facts.devices.get(device_id)

    def put_device(self, device: Device) -> None:
        self._devices[device.device_id] = device

    def contact(self, device_id: str, at_ms: int, agent: str | None = None) -> Device:
        """Note that something of the device arrived."""
        known = self.device(device_id) or Device(device_id=device_id)
        last_ms = at_ms if known.last_contact_ms is None else max(at_ms, known.last_contact_ms)
        device = replace(known, last_contact_ms=last_ms, agent=agent or known.agent, sync_asked_ms=None)
        if known.sync_asked_ms is not None:
            self.asked_to_sync.add(device_id)
        self._devices[device_id] = device
        return device

    # Streams and events.

    def account(self, device_id: str, stream: str) -> Account | None:
        """The stream's account, if anything of it ever arrived."""
        name = (device_id, stream)
        if (account := self._accounts.get(name)) is None and (row := self.facts.streams.get(name)) is not None:
            account = self._accounts[name] = Account(row, self.facts.gaps.get(name, ()))
        return account

    def begin_account(self, device_id: str, stream: str, now_ms: int) -> Account:
        row = Stream(device_id=device_id, stream=stream, first_ms=now_ms, last_ms=now_ms)
        account = self._accounts[device_id, stream] = Account(row, ())
        return account

    def put_events(self, rows: list[StoredEvent]) -> None:
        self.changes.events += rows
        self.sums.add_events(rows)
        self._unseen += rows

    def new_events(self, place: Place) -> dict[int, int]:
        """Return which events of a stream before a seq this group stores: seq to index in `changes.events`."""
        device_id, stream, below = place
        return {
            row.seq: index
            for index, row in enumerate(self.changes.events)
            if row.seq < below and row.stream == stream and row.device_id == device_id
        }

    def versions(self, place: Place) -> list[Version]:
        """What stands under a seq, what this group put there included; append to it through `add_version`."""
        for row in self._unseen:  # plain continuations never ask, and do without
            self._versions.setdefault((row.device_id, row.stream, row.seq), [Version(STORED, row.content)])
        self._unseen.clear()
        return self._versions.get(place) or self.facts.versions.get(place) or []

    def add_version(self, place: Place, version: Version) -> None:
        self._versions[place] = [*self.versions(place), version]

    def stored_at(self, key: tuple[str, bytes]) -> Place | None:
        """Where an event with this key is stored."""
        return self._places.get(key) or self.facts.event_keys.get(key)

    def put_key(self, key: tuple[str, bytes], place: Place) -> None:
        """Note where an event is stored whose key is new."""
        self._places[key] = place
        self.changes.event_keys.append(EventKey(key[0], key[1], place[0], place[1], place[2]))

    def is_erased(self, home: str | None, learner_id: str | None) -> bool:
        """Whether a learner was erased."""
        if learner_id is None or not self.facts.erased:
            return False
        learner = (home, learner_id)
        if (known := self._erased.get(learner)) is None:
            hashes = (erasure.learner_hash(key, *learner) for key in self.facts.erasure_keys)
            known = self._erased[learner] = not self.facts.erased.isdisjoint(hashes)
        return known

    def drop_places(self, places: set[Place]) -> None:
        """Forget where events are stored that are not."""
        changes = self.changes
        changes.event_keys = [row for row in changes.event_keys if _stored_place(row) not in places]
        changes.carried = [row for row in changes.carried if _copied_place(row) not in places]
        self._places = {key: place for key, place in self._places.items() if place not in places}

    # Sync events.

    def sync_event(self, device_id: str, key: str) -> StoredSyncEvent | None:
        return self._sync_events_by_key.get((device_id, key)) or self.facts.sync_events.get((device_id, key))

    def put_sync_event(self, event: StoredSyncEvent) -> None:
        self.changes.sync_events.append(event)
        self.sums.add_sync_event(event)
        if event.total_errors > 0:
            self._failures[event.device_id].append(event.at_ms)
        if event.idempotency_key is not None:
            self._sync_events_by_key[event.device_id, event.idempotency_key] = event

    def next_sync_event_id(self) -> int:
        return next(self._sync_event_ids)

    def failures_of(self, device_id: str) -> list[int]:
        """The effective times of the device's failures in this group."""
        return self._failures[device_id]

    # The audit log.

    def note(
        self,
        by: Actor | None,
        act: str,
        target: str | None,
        at_ms: int,
        detail: Mapping[str, object] = MappingProxyType({}),
        *,
        made: str | None = None,
    ) -> None:
        """Write an act into the audit log, if there is someone who did it."""
        if by is not None:
            self.changes.audit.append(audited(by, act, target, at_ms, detail, made=made))

    # The end.

    def finish(self) -> Changes:
        """Return everything that differs from the facts."""
        changes = self.changes
        changes.devices = list(self._devices.values())
        changes.sums = self.sums.rows()
        for account in self._accounts.values():
            name = (account.row.device_id, account.row.stream)
            if account.touched:
                changes.streams.append(account.row)
            changes.gaps_closed += [Gap(*name, *gap) for gap in account.closed()]
            changes.gaps += [Gap(*name, *gap) for gap in account.opened()]
        if self.tokens or self.codes:
            self._add_access(changes)
        return changes

    def _add_access(self, changes: Changes) -> None:
        tokens = {token.token_hash: token for token in self.facts.tokens}
        codes = {code.code_hash: code for code in self.facts.codes}
        changes.tokens = [token for key, token in self.tokens.items() if key not in tokens]
        changes.tokens_changed = [token for key, token in self.tokens.items() if token != tokens.get(key, token)]
        changes.codes = [code for key, code in self.codes.items() if key not in codes]
        changes.codes_changed = [code for key, code in self.codes.items() if code != codes.get(key, code)]


def _stored_place(row: EventKey) -> Place:
    return row.stored_device_id, row.stream, row.seq


def _copied_place(row: Carried) -> Place:
    return row.stored_device_id, row.stored_stream, row.stored_seq


def runs(numbers: Sequence[int]) -> list[Range]:
    """Ascending, distinct numbers as ranges that do not touch."""
    if numbers and numbers[-1] - numbers[0] == len(numbers) - 1:
        return [(numbers[0], numbers[-1])]
    found: list[Range] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def without(gap: Range, run: Range) -> list[Range]:
    """What is left of `gap` once `run`, which lies in it, is filled."""
    left = (gap[0], run[0] - 1), (run[1] + 1, gap[1])
    return [(first, last) for first, last in left if first <= last]
