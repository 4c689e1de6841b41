"""From a body's bytes to what the store takes.

A good batch is one typed decode and light work an event. Only when that fails is the batch taken apart event by
event, so that a bad event is rejected alone and its neighbours are stored.
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from pisync_common import rules
from pisync_common.errors import RuleError
from pisync_common.limits import BATCH_EVENTS, DATA_BYTES, DATA_DEPTH
from pisync_common.models import ERROR_CODES, Origin, Stamp
from pisync_common.times import parse_ms
from pisync_receiver.api.schemas import (
    Agent,
    Batch,
    CarriedFrom,
    Enrollment,
    ProgressEvent,
    Sent,
    Seq,
    SyncEventRequest,
)
from pisync_receiver.domain.acts import NOTE_CHARS, NOTE_PATTERN
from pisync_receiver.domain.content import body_hash, event_hash
from pisync_receiver.domain.submissions import Event, EventBatch, InvalidEvent
from pisync_receiver.errors import Problem

T = TypeVar("T")


class _GoodBatch(Struct, frozen=True, kw_only=True):
    """A batch without a bad event."""

    device_id: str
    stream: str
    events: list[ProgressEvent]
    sent: Sent | None = None
    agent: Agent | None = None


class _Numbered(Struct, frozen=True):
    seq: Seq


_fields = msgspec.json.Decoder(dict[str, Raw])
_good_batch = msgspec.json.Decoder(_GoodBatch)
_any_batch = msgspec.json.Decoder(Batch)
_event = msgspec.json.Decoder(ProgressEvent)
_numbered = msgspec.json.Decoder(_Numbered)
_sync_event = msgspec.json.Decoder(SyncEventRequest)
_enrollment = msgspec.json.Decoder(Enrollment)

_NOTE: Final = re.compile(NOTE_PATTERN)
REASON_CHARS: Final = 300
"""Of a refusal's reason."""

_WHOLE: Final = {
    *("seq", "boottime_ms", "total_files_synced", "total_errors", *ERROR_CODES),
    *("uses", "count", "expires_in_s", "overlap_s", "older_than_s", "after"),
}
_NESTED: Final = {"sent", "origin", "errors"}
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
_remembering: Final = lru_cache(maxsize=4096)
_check_id: Final = _remembering(rules.check_id)
_check_type: Final = _remembering(rules.check_type)
_check_learner_id: Final = _remembering(rules.check_learner_id)
_check_object_id: Final = _remembering(rules.check_object_id)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def decode_batch(body: bytes, received_ms: int) -> EventBatch:
    """Read a batch whose every event is either good or rejected. Raises Problem 400 if it is invalid as a whole, 413
    if it has too many events."""
    try:
        batch = _good_batch.decode(body)
        _check_envelope(batch)
        _check_values(batch.events)
        return _submission(batch, [_event_of(event) for event in batch.events], [], received_ms)
    except _UNREADABLE:
        return _decode_carefully(body, received_ms)


def decode_sync_event(body: bytes) -> tuple[SyncEventRequest, int]:
    """Read a sync event; with it its timestamp as milliseconds since 1970. Raises Problem 400."""
    try:
        event = _tolerant(_sync_event, body)
        _check_id("device_id", event.device_id)
        return event, to_ms("timestamp", event.timestamp)
    except _UNREADABLE as error:
        raise Problem(400, "invalid_sync_event", f"invalid sync event: {_reason(error)}") from error


def decode_enrollment(body: bytes) -> Enrollment:
    """Read an enrollment. Raises Problem 400, which does not repeat the code."""
    try:
        enrollment = _enrollment.decode(body)
        if enrollment.device_id is not None:
            rules.check_id("device_id", enrollment.device_id)
        if enrollment.site is not None:
            rules.check_site(enrollment.site)
        return enrollment
    except _UNREADABLE as error:
        raise Problem(400, "invalid_enrollment", f"invalid enrollment: {_reason(error)}") from error


def decode_body(kind: type[T], body: bytes) -> T:
    """Read the body of an administrative act, its ids and texts by the rules. Raises Problem 400."""
    try:
        value = _tolerant(msgspec.json.Decoder(kind), body)
        for name, check in _ACT_RULES.items():
            given = getattr(value, name, None)
            for part in given if isinstance(given, list) else (given,):
                if part is not None:
                    check(name, part)
        return value
    except _UNREADABLE as error:
        raise Problem(400, "invalid_request", f"invalid request: {_reason(error)}") from error


def to_ms(name: str, text: str) -> int:
    """Parse a time as `common.times.parse_ms` does, at a quarter of its cost for the shape the agent sends. Raises
    RuleError that names `name`."""
    try:
        if text[4:20:3] == "--T::." and text[23:] == "Z" and text[17:19] != "60":  # 2026-11-23T10:00:00.000Z
            return (datetime.fromisoformat(text) - _EPOCH) // _MILLISECOND
        return parse_ms(text)
    except ValueError as error:
        raise RuleError(f"{name}: {error if isinstance(error, RuleError) else f'no such time: {text!r}'}") from error


def _check_text(name: str, value: str) -> None:
    try:
        rules.check_site(value)
    except RuleError as error:
        raise RuleError(str(error).replace("site", name, 1)) from error


def _check_note(name: str, value: str) -> None:
    if not _NOTE.fullmatch(value):
        raise RuleError(f"{name} must be 1 to {NOTE_CHARS:,} characters without control characters but new lines")


_check_agent: Final = _remembering(_check_text)
_ACT_RULES: Final[dict[str, Callable[[str, Any], object]]] = {
    "device_id": rules.check_id,
    "learner_home": lambda _, value: rules.check_learner_id(value),
    "learner_id": lambda _, value: rules.check_learner_id(value),
    "type": lambda _, value: rules.check_type(value),
    "site": _check_text,
    "sites": _check_text,
    "label": _check_text,
    "site_since": to_ms,
    "text": _check_note,
}


def _decode_carefully(body: bytes, received_ms: int) -> EventBatch:
    """Take a batch apart event by event."""
    try:
        batch = _split(body)
        _check_envelope(batch)
        numbered = [(_seq(index, raw), raw) for index, raw in enumerate(batch.events)]
        events: list[Event] = []
        invalid: list[InvalidEvent] = []
        for seq, raw in numbered:
            try:
                event = _tolerant(_event, raw)
                _check_values([event])
                events.append(_event_of(event))
            except _UNREADABLE as error:
                invalid.append(_rejected(seq, raw, error))
        return _submission(batch, events, invalid, received_ms)
    except _UNREADABLE as error:
        raise Problem(400, "invalid_batch", f"invalid batch: {_reason(error)}") from error


def _split(body: bytes) -> Batch:
    try:
        return _tolerant(_any_batch, body)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        # For one lone "\\ud800" escape, which is JSON, msgspec refuses the whole text; one event must not block all.
        value = json.loads(body, parse_constant=_no_constant)
    events = value.get("events") if isinstance(value, dict) else None
    if not isinstance(events, list):
        raise RuleError("it must be an object with an array of events")
    envelope = msgspec.convert(value | {"events": []}, Batch)
    return msgspec.structs.replace(envelope, events=[Raw(json.dumps(event).encode()) for event in events])


def _no_constant(name: str) -> None:
    raise RuleError(f"{name} is not JSON")


def _seq(index: int, raw: Raw) -> int:
    """Return an event's seq. An event without a seq cannot be accounted for, so its batch is invalid."""
    try:
        try:
            return _tolerant(_numbered, raw).seq
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            value = json.loads(bytes(raw))
            seq = value.get("seq") if isinstance(value, dict) else None
            return msgspec.convert({"seq": seq}, _Numbered).seq
    except msgspec.ValidationError as error:
        raise RuleError(f"events[{index}] has no usable seq: {error}") from error


def _tolerant(decoder: msgspec.json.Decoder[T], text: bytes | Raw) -> T:
    """Decode; if the types are wrong, once more with 5 for 5.0: JSON Schema and some languages make no difference."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        mended = _with_whole_numbers(text)
        if mended is None:
            raise
        return decoder.decode(mended)


def _with_whole_numbers(text: bytes | Raw) -> Raw | None:
    """Return JSON text with `5` for `5.0` where the wire has whole numbers; None unless it is an object."""
    try:
        fields = _fields.decode(text)
    except msgspec.DecodeError:
        return None
    for name in fields.keys() & _NESTED:
        fields[name] = _with_whole_numbers(fields[name]) or fields[name]
    for name in fields.keys() & _WHOLE:
        value = msgspec.json.decode(fields[name])
        if isinstance(value, float) and value.is_integer():
            fields[name] = Raw(b"%d" % int(value))
    return Raw(msgspec.json.encode(fields))


def _rejected(seq: int, raw: Raw, error: Exception) -> InvalidEvent:
    body = bytes(raw).decode("utf-8", "backslashreplace")
    return InvalidEvent(seq=seq, code="invalid_event", detail=_reason(error), body=body, content=body_hash(body))


def _check_envelope(batch: Batch | _GoodBatch) -> None:
    _check_id("device_id", batch.device_id)
    _check_id("stream", batch.stream)
    if batch.agent:
        _check_agent("agent", batch.agent)
    if (size := len(batch.events)) > BATCH_EVENTS:
        raise Problem(413, "batch_too_large", f"too many events: {size:,}; the limit is {BATCH_EVENTS:,} a batch")


def _check_values(events: list[ProgressEvent]) -> None:
    """Check the rules of `common.rules`; what was checked lately costs a look-up: types, learners and boots repeat."""
    for event in events:
        _check_type(event.type)
        if event.id is not None:
            rules.check_event_id(event.id)
        if event.learner_id is not None:
            _check_learner_id(event.learner_id)
        if event.learner_home is not None:
            _check_learner_id(event.learner_home)
        if event.object_id is not None:
            _check_object_id(event.object_id)
        if event.boot_id is not None:
            _check_id("boot_id", event.boot_id)


def _event_of(event: ProgressEvent) -> Event:
    origin, data, recorded_at = event.origin, _data(event.data), event.recorded_at
    return Event(  # by position: naming fifteen fields would cost as much as all the rest
        event.seq,
        event.type,
        event.occurred_at,
        to_ms("occurred_at", event.occurred_at),
        event_hash(
            event.type,
            event.learner_home,
            event.learner_id,
            event.object_id,
            event.id,
            event.occurred_at,
            recorded_at,
            event.boot_id,
            event.boottime_ms,
            data=data,
        ),
        recorded_at,
        None if recorded_at is None else to_ms("recorded_at", recorded_at),
        event.learner_home,
        event.learner_id,
        event.object_id,
        event.id,
        event.boot_id,
        event.boottime_ms,
        event.clock_synced,
        data,
        None if origin is None else _origin(origin),
    )


def _origin(given: CarriedFrom) -> Origin:
    stream = rules.check_id("origin.stream", given.stream)
    device_id = None if given.device_id is None else rules.check_id("origin.device_id", given.device_id)
    return Origin(stream=stream, seq=given.seq, device_id=device_id)


def _data(raw: Raw) -> str | None:
    text = str(raw, "utf-8")
    if not text or text == "null":
        return None
    if text[0] != "{":
        raise RuleError("data must be a JSON object")
    if len(text) > DATA_DEPTH:  # shorter text cannot break either limit
        if len(text.encode()) > DATA_BYTES:
            raise RuleError(f"data is over {DATA_BYTES:,} bytes as JSON, the limit for one event")
        rules.check_depth(text)
    return text


def _submission(
    batch: Batch | _GoodBatch, events: list[Event], invalid: list[InvalidEvent], received_ms: int
) -> EventBatch:
    return EventBatch(
        device_id=batch.device_id,
        stream=batch.stream,
        sent=_stamp(batch.sent),
        agent=batch.agent,
        events=events,
        invalid=invalid,
        received_ms=received_ms,
    )


def _stamp(sent: Sent | None) -> Stamp | None:
    """Return the device's clocks if it named them all; a boot time without its boot says nothing."""
    if sent is None:
        return None
    at_ms = to_ms("sent.at", sent.at)
    if sent.boot_id is not None:
        _check_id("sent.boot_id", sent.boot_id)
    if sent.boot_id is None or sent.boottime_ms is None:
        return None
    return Stamp(at_ms=at_ms, boot_id=sent.boot_id, boottime_ms=sent.boottime_ms, clock_synced=sent.clock_synced)


def _reason(error: Exception) -> str:
    match error:
        case msgspec.ValidationError() | RuleError():
            text = str(error)  # may quote the body, at any length
            return text if len(text) <= REASON_CHARS else f"{text[: REASON_CHARS - 1]}…"
        case RecursionError():
            return "it nests too deep"
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case json.JSONDecodeError():
            return f"it is not JSON: {error}"
        case _:
            return "it is not JSON, or holds text that is not Unicode"
