"""Decide what becomes of a group of submissions, given what is stored. No I/O.

    plan     -> which rows are needed first
    details  -> which more, for batches that are no plain continuation of their stream and for late successes
    decide   -> an outcome for each submission, and the rows to write before any outcome is handed out

Submissions are decided in their order, each on top of those before it. A submission that cannot be stored has the
exception as its outcome and changes nothing.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import partial
from operator import attrgetter
from typing import Final

from pisync_common.limits import RECEIPT_RANGES
from pisync_common.models import Receipt
from pisync_receiver.domain import access, erasure, repairs
from pisync_receiver.domain.batches import decide_batch
from pisync_receiver.domain.content import keys_of, origin_key
from pisync_receiver.domain.facts import Decision, Details, Facts, Plan, StreamName
from pisync_receiver.domain.health import FAILURES_COUNTED, after_failure, after_success, is_late
from pisync_receiver.domain.rows import StoredSyncEvent
from pisync_receiver.domain.sites import site_at
from pisync_receiver.domain.state import State
from pisync_receiver.domain.submissions import Act, EventBatch, Outcome, Submission, SyncAsked, SyncEvent
from pisync_receiver.domain.times import effective_ms
from pisync_receiver.errors import TooManyStreams

_seq: Final = attrgetter("seq")
_origin: Final = attrgetter("origin")
_DETAILS: Final = tuple(field.name for field in fields(Details))


def plan(submissions: Sequence[Submission]) -> Plan:
    """The rows to fetch first, locking the devices."""
    devices: set[str] = set()
    streams: set[StreamName] = set()
    sync_keys: set[tuple[str, str]] = set()
    event_keys: set[tuple[str, bytes]] = set()
    sync_events = 0
    acts: list[Act] = []
    for submission in submissions:
        if isinstance(submission, SyncEvent):
            devices.add(submission.device_id)
            sync_events += 1
            if submission.idempotency_key is not None:
                sync_keys.add((submission.device_id, submission.idempotency_key))
        elif isinstance(submission, EventBatch):
            devices.add(submission.device_id)
            streams.add((submission.device_id, submission.stream))
            for event in submission.events:
                if event.event_id is not None or event.origin is not None:
                    event_keys.update(keys_of(submission.device_id, event))
        else:
            acts.append(submission)
    wanted = Plan(
        devices=sorted(devices),
        streams=sorted(streams),
        sync_keys=sorted(sync_keys),
        event_keys=sorted(event_keys),
        sync_event_ids=sync_events,
        learners=bool(streams),
    )
    return access.planned(acts, wanted) if acts else wanted


def details(facts: Facts, submissions: Sequence[Submission]) -> Details | None:
    """The rows to fetch next, given what `plan` asked for; None if nothing more is needed."""
    batches: dict[StreamName, list[EventBatch]] = defaultdict(list)
    late: set[tuple[str, int]] = set()
    acts: list[Act] = []
    for submission in submissions:
        if isinstance(submission, SyncEvent):
            if (at_ms := _late(facts, submission)) is not None:
                late.add((submission.device_id, at_ms))
        elif isinstance(submission, EventBatch):
            if not _continues(facts, submission):
                batches[submission.device_id, submission.stream].append(submission)
        else:
            acts.append(submission)
    earlier = repairs.wanted(facts, _batches(submissions))
    keys = [key for key in facts.erasure_keys if key not in facts.keys_asked]
    learners = erasure.asked(keys, _batches(submissions)) if keys else ()
    if not (batches or late or acts or earlier or learners):
        return None
    known_devices, tokens_of = access.bound_devices(facts, acts) if acts else ((), ())
    sessions_of = access.ending_tokens(facts, acts) if acts else ()
    wanted = Details(
        versions=_versions(facts, batches),
        gaps=_gaps(facts, batches),
        neighbours=_neighbours(facts, batches),
        late_successes=sorted(late),
        event_keys=sorted(_place_keys(facts, batches)),
        known_devices=known_devices,
        tokens_of=tokens_of,
        sessions_of=sessions_of,
        earlier=earlier,
        learners=learners,
    )
    return wanted if any(getattr(wanted, name) for name in _DETAILS) else None


def decide(facts: Facts, submissions: Sequence[Submission]) -> Decision:
    """An outcome for each submission, and what to write. `facts` is left as it was."""
    failed: dict[int, Exception] = {}
    while True:
        state = State(facts)
        outcomes: list[Outcome] = []
        for index, submission in enumerate(submissions):
            try:
                outcomes.append(failed[index] if index in failed else _outcome(state, submission))
            except Exception as error:  # a fault of ours, which must not fail its neighbours: start again without it
                failed[index] = error
                break
        else:
            return Decision(outcomes, state.finish())


def _outcome(state: State, submission: Submission) -> Outcome:
    if isinstance(submission, SyncEvent):
        outcome: Receipt | StoredSyncEvent | TooManyStreams = _sync_event(state, submission)
    elif isinstance(submission, EventBatch):
        outcome = decide_batch(state, submission)
    else:
        return access.decide_act(state, submission)
    if state.asked_to_sync and submission.device_id in state.asked_to_sync:
        state.asked_to_sync.discard(submission.device_id)
        return outcome if isinstance(outcome, Exception) else SyncAsked(outcome=outcome)
    return outcome


# Sync events.


def _sync_event(state: State, event: SyncEvent) -> StoredSyncEvent:
    key = event.idempotency_key
    if key is not None and (first := state.sync_event(event.device_id, key)) is not None:
        state.contact(event.device_id, event.received_ms)
        return first
    before = state.contact(event.device_id, event.received_ms)
    at_ms = effective_ms(event.claimed_ms, event.received_ms)
    errors = json.dumps(dict(event.errors), separators=(",", ":")) if event.errors else None
    stored = StoredSyncEvent(
        event.device_id,
        state.next_sync_event_id(),
        site_at(before, at_ms),
        event.timestamp,
        at_ms,
        event.total_files_synced,
        event.total_errors,
        event.internet_speed,
        errors,
        key,
        event.received_ms,
    )
    if event.total_errors > 0:
        after = after_failure(before, at_ms, errors)
    else:
        found = partial(_failures_after, state, event.device_id, at_ms)
        after = after_success(before, at_ms, found, plausible=at_ms == event.claimed_ms)
    state.put_sync_event(stored)
    state.put_device(after)
    return stored


def _failures_after(state: State, device_id: str, at_ms: int) -> tuple[int, int | None]:
    """Failures after a moment: those stored, and those of this group."""
    stored = state.facts.failures_after.get((device_id, at_ms))
    times = [ms for ms in state.failures_of(device_id) if ms > at_ms]
    count = len(times) + (0 if stored is None else stored.count)
    if stored is not None and stored.oldest_ms is not None:
        times.append(stored.oldest_ms)
    return min(count, FAILURES_COUNTED), min(times, default=None)


def _late(facts: Facts, event: SyncEvent) -> int | None:
    """The effective time of a success that may turn out to be late."""
    if event.total_errors > 0:
        return None
    at_ms = effective_ms(event.claimed_ms, event.received_ms)
    device = facts.devices.get(event.device_id)
    return at_ms if device is not None and is_late(device, at_ms) else None


# What batches need to know.

_Batches = dict[StreamName, list[EventBatch]]


def _batches(submissions: Sequence[Submission]) -> Iterable[EventBatch]:
    return (submission for submission in submissions if isinstance(submission, EventBatch))


def _continues(facts: Facts, batch: EventBatch) -> bool:
    """Whether nothing that is stored concerns the batch but the row of its stream."""
    known = facts.streams.get((batch.device_id, batch.stream))
    highest = 0 if known is None else known.highest
    if batch.invalid or facts.devices[batch.device_id].copies or (known is not None and known.watermark < highest):
        return False
    return min(map(_seq, batch.events), default=highest + 1) > highest and not any(map(_origin, batch.events))


def _place_keys(facts: Facts, batches: _Batches) -> set[tuple[str, bytes]]:
    """Keys of copies of the batches' own places, for devices that carried events over."""
    return {
        origin_key(device_id, stream, event.seq, event.content)
        for (device_id, stream), group in batches.items()
        if facts.devices[device_id].copies
        for batch in group
        for event in batch.events
    }


def _versions(facts: Facts, batches: _Batches) -> list[tuple[str, str, Sequence[int]]]:
    wanted: dict[StreamName, set[int]] = defaultdict(set)
    for (device_id, stream), group in batches.items():
        known = facts.streams.get((device_id, stream))
        highest = 0 if known is None else known.highest
        wanted[device_id, stream].update(seq for seq in _seqs(group) if seq <= highest)
        for batch in group:
            for event in batch.events:
                if event.origin is not None:
                    wanted[event.origin.device_id or device_id, event.origin.stream].add(event.origin.seq)
    return [(device_id, stream, sorted(seqs)) for (device_id, stream), seqs in sorted(wanted.items()) if seqs]


def _gaps(facts: Facts, batches: _Batches) -> list[tuple[str, str, int, Sequence[int]]]:
    """As many of the first gaps as the batches can close, and what a receipt names after them."""
    wanted: list[tuple[str, str, int, Sequence[int]]] = []
    for (device_id, stream), group in batches.items():
        known = facts.streams.get((device_id, stream))
        if known is not None and known.watermark < known.highest:
            seqs = sorted({seq for seq in _seqs(group) if known.watermark < seq <= known.highest})
            wanted.append((device_id, stream, len(seqs) + 1 + RECEIPT_RANGES, seqs))
    return wanted


def _neighbours(facts: Facts, batches: _Batches) -> list[tuple[str, str, int, int]]:
    wanted = []
    for (device_id, stream), group in batches.items():
        known = facts.streams.get((device_id, stream))
        seqs = [event.seq for batch in group for event in batch.events]
        if known is not None and seqs and min(seqs) <= known.highest:
            wanted.append((device_id, stream, min(seqs), max(seqs)))
    return wanted


def _seqs(group: Iterable[EventBatch]) -> Iterable[int]:
    for batch in group:
        yield from (event.seq for event in batch.events)
        yield from (bad.seq for bad in batch.invalid)
