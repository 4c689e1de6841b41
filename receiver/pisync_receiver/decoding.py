"""From a body's bytes to what the store takes.

A good batch is one typed decode and light work an event. Only when that fails is the batch taken apart event by
event, so that a bad one is rejected by itself and its neighbours are stored.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from pisync_common import rules
from pisync_common.errors import RuleError
from pisync_common.limits import BATCH_EVENTS, DATA_BYTES, DATA_DEPTH
from pisync_common.models import ERROR_CODES, Origin, Stamp
from pisync_common.times import parse_ms
from pisync_receiver.errors import Problem
from pisync_receiver.store import IncomingEvent, InvalidEvent
from pisync_receiver.wire import Agent, Batch, Enrollment, ProgressEvent, Sent, Seq, SyncEvent

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


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedBatch:
    """A batch whose every event is either good or rejected."""

    device_id: str
    stream: str
    sent: Stamp | None
    agent: str | None
    events: list[IncomingEvent]
    invalid: list[InvalidEvent]


_fields = msgspec.json.Decoder(dict[str, Raw])
_good_batch = msgspec.json.Decoder(_GoodBatch)
_any_batch = msgspec.json.Decoder(Batch)
_event = msgspec.json.Decoder(ProgressEvent)
_numbered = msgspec.json.Decoder(_Numbered)
_sync_event = msgspec.json.Decoder(SyncEvent)
_enrollment = msgspec.json.Decoder(Enrollment)

_WHOLE: Final = {"seq", "boottime_ms", "total_files_synced", "total_errors", *ERROR_CODES}
_NESTED: Final = {"sent", "origin", "errors"}
_UNREADABLE: Final = (msgspec.MsgspecError, RuleError, RecursionError, UnicodeDecodeError, json.JSONDecodeError)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def decode_batch(body: bytes) -> DecodedBatch:
    """Read a batch. Raises Problem 400 when it is no batch, 413 when it has too many events."""
    try:
        batch = _good_batch.decode(body)
        _check_envelope(batch)
        _check_values(batch.events)
        return _decoded(batch, [_incoming(event) for event in batch.events], [])
    except _UNREADABLE:
        return _decode_carefully(body)


def decode_sync_event(body: bytes) -> tuple[SyncEvent, int]:
    """Read a sync event; with it its timestamp as milliseconds since 1970. Raises Problem 400."""
    try:
        event = _tolerant(_sync_event, body)
        rules.check_id("device_id", event.device_id)
        return event, to_ms("timestamp", event.timestamp)
    except _UNREADABLE as error:
        raise Problem(400, "invalid_sync_event", f"this is no sync event: {_reason(error)}") from error


def decode_enrollment(body: bytes) -> Enrollment:
    """Read an enrollment. Raises Problem 400, which does not repeat the code."""
    try:
        enrollment = _enrollment.decode(body)
        if enrollment.device_id is not None:
            rules.check_id("device_id", enrollment.device_id)
        return enrollment
    except _UNREADABLE as error:
        raise Problem(400, "invalid_enrollment", f"this is no enrollment: {_reason(error)}") from error


def to_ms(name: str, text: str) -> int:
    """`common.times.parse_ms` at a quarter of its cost for the one shape the agent sends; RuleError names `name`."""
    try:
        if text[4:20:3] == "--T::." and text[23:] == "Z":  # 2026-11-23T10:00:00.000Z
            return (datetime.fromisoformat(text) - _EPOCH) // _MILLISECOND
        return parse_ms(text)
    except ValueError as error:
        raise RuleError(f"{name}: {error if isinstance(error, RuleError) else f'no such time: {text!r}'}") from error


def _decode_carefully(body: bytes) -> DecodedBatch:
    """Take a batch apart event by event."""
    try:
        batch = _split(body)
        _check_envelope(batch)
        numbered = [(_seq(index, raw), raw) for index, raw in enumerate(batch.events)]
        events: list[IncomingEvent] = []
        invalid: list[InvalidEvent] = []
        for seq, raw in numbered:
            try:
                event = _tolerant(_event, raw)
                _check_values([event])
                events.append(_incoming(event))
            except _UNREADABLE as error:
                invalid.append(_rejected(seq, raw, error))
        return _decoded(batch, events, invalid)
    except _UNREADABLE as error:
        raise Problem(400, "invalid_batch", f"this is no batch: {_reason(error)}") from error


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
    """An event without a seq cannot be accounted for, so it spoils its batch."""
    try:
        try:
            return _tolerant(_numbered, raw).seq
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return msgspec.convert(json.loads(bytes(raw)), _Numbered).seq
    except msgspec.ValidationError as error:
        raise RuleError(f"events[{index}] has no usable seq: {error}") from error


def _tolerant(decoder: msgspec.json.Decoder[T], text: bytes | Raw) -> T:
    """Decode; if the types are wrong, once more with 5.0 for 5: to JSON Schema, and to some languages, they are one."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        mended = _with_whole_numbers(text)
        if mended is None:
            raise
        return decoder.decode(mended)


def _with_whole_numbers(text: bytes | Raw) -> Raw | None:
    """JSON text with `5` for `5.0` where the wire has whole numbers; None for what is no object."""
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
    return InvalidEvent(seq=seq, code="invalid_event", detail=_reason(error), body=body)


def _check_envelope(batch: Batch | _GoodBatch) -> None:
    rules.check_id("device_id", batch.device_id)
    rules.check_id("stream", batch.stream)
    if (size := len(batch.events)) > BATCH_EVENTS:
        raise Problem(413, "batch_too_large", f"a batch may have {BATCH_EVENTS:,} events; this one has {size:,}")


def _check_values(events: list[ProgressEvent]) -> None:
    """The rules of `common.rules`, once for each distinct value: a batch has few types, learners and boots."""
    for kind in {event.type for event in events}:
        rules.check_type(kind)
    for learner in {event.learner_id for event in events} - {None}:
        rules.check_id("learner_id", learner)  # type: ignore[arg-type]
    for item in {event.object_id for event in events} - {None}:
        rules.check_object_id(item)  # type: ignore[arg-type]
    for boot in {event.boot_id for event in events} - {None}:
        rules.check_id("boot_id", boot)  # type: ignore[arg-type]


def _incoming(event: ProgressEvent) -> IncomingEvent:
    origin = event.origin
    return IncomingEvent(  # by position: naming eleven fields would cost as much as all the rest
        event.seq,
        event.type,
        event.occurred_at,
        to_ms("occurred_at", event.occurred_at),
        event.learner_id,
        event.object_id,
        event.boot_id,
        event.boottime_ms,
        event.clock_synced,
        _data(event.data),
        None if origin is None else Origin(stream=rules.check_id("origin.stream", origin.stream), seq=origin.seq),
    )


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


def _decoded(batch: Batch | _GoodBatch, events: list[IncomingEvent], invalid: list[InvalidEvent]) -> DecodedBatch:
    return DecodedBatch(
        device_id=batch.device_id,
        stream=batch.stream,
        sent=_stamp(batch.sent),
        agent=batch.agent,
        events=events,
        invalid=invalid,
    )


def _stamp(sent: Sent | None) -> Stamp | None:
    """The device's clocks, where it named them all; a boot time without its boot says nothing."""
    if sent is None:
        return None
    at_ms = to_ms("sent.at", sent.at)
    if sent.boot_id is not None:
        rules.check_id("sent.boot_id", sent.boot_id)
    if sent.boot_id is None or sent.boottime_ms is None:
        return None
    return Stamp(at_ms=at_ms, boot_id=sent.boot_id, boottime_ms=sent.boottime_ms, clock_synced=sent.clock_synced)


def _reason(error: Exception) -> str:
    match error:
        case msgspec.ValidationError() | RuleError():
            return str(error)
        case RecursionError():
            return "it nests too deep"
        case UnicodeDecodeError():
            return "it is not UTF-8"
        case json.JSONDecodeError():
            return f"it is not JSON: {error}"
        case _:
            return "it is not JSON, or holds text that is not Unicode"
