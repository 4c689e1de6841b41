"""Content identity: hashes that are equal for events that say the same.

A version under a seq is identified by type, learner, object, times, boot, the app's own id, and data as a JSON value:
key order, white space and `1.0` for `1` make no difference. Where it stands (seq, stream, origin) and whether the clock
was synchronised do not count. An app's id identifies what happened, not when it was recorded, so times and boot do not
count there.
"""

import json
import re
from hashlib import blake2b
from math import isinf
from typing import Any, Final
from uuid import UUID

import msgspec

from pisync_receiver.domain.submissions import Event

SHARED: Final = "#"
"""Begins the pseudo device that keys of UUIDs belong to; no device id contains it."""

_FIELDS: Final = (
    "type",
    "learner_home",
    "learner_id",
    "object_id",
    "id",
    "occurred_at",
    "recorded_at",
    "boot_id",
    "boottime_ms",
    "data",
)
_EXACT: Final = 2**53
_SIZE: Final = 16
_FRACTION: Final = re.compile(r"[0-9][.eE]")
"""What a number like 1.0 or 1e0 has; some other text has it too."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode


def event_hash(*fields: str | int | None, data: str | None) -> bytes:
    """Hash a version: `fields` are type, learner_home, learner_id, object_id, id, occurred_at, recorded_at, boot_id,
    boottime_ms; `data` is JSON text."""
    return _hash(_canonical([*fields], data))


def body_hash(body: str) -> bytes:
    """Hash an event's whole JSON text, which need not be a valid event, nor JSON."""
    try:
        value = json.loads(body, parse_float=_number, parse_int=_whole)
        if isinstance(value, dict):
            return _hash(_dumps([value.get(name) for name in _FIELDS]))
    except (ValueError, RecursionError):
        pass
    return _hash(b"raw:" + body.encode("utf-8", "surrogatepass"))


def keys_of(device_id: str, event: Event) -> list[tuple[str, bytes]]:
    """The keys under which the event may be stored already: its app's id, and where it was first recorded."""
    keys = [] if event.event_id is None else [id_key(device_id, event)]
    if event.origin is not None:
        origin = event.origin
        keys.append(origin_key(origin.device_id or device_id, origin.stream, origin.seq, event.content))
    return keys


def id_key(device_id: str, event: Event) -> tuple[str, bytes]:
    """The key of an event with an app's id: whose it is (see `rows.EventKey`), and the hash of id and content."""
    assert event.event_id is not None
    shared = _is_uuid(event.event_id)
    app_id = event.event_id.lower() if shared else event.event_id
    said = [app_id, event.type, event.learner_home, event.learner_id, event.object_id]
    key = _hash(b"id:" + _canonical(said, event.data))
    return (f"{SHARED}{key[:1].hex()}" if shared else device_id), key


def origin_key(device_id: str, stream: str, seq: int, content: bytes) -> tuple[str, bytes]:
    """The key of an event that was first recorded at another place, of this device or another."""
    return device_id, _hash(b"at:%d:%b:" % (seq, stream.encode()) + content)


def _canonical(fields: list[Any], data: str | None) -> bytes:
    if data is None:
        return _encode([*fields, None])
    if _FRACTION.search(data) is None:
        try:
            return _encode([*fields, _decode(data)])
        except (ValueError, RecursionError):  # a lone surrogate, or a number beyond what msgspec reads
            pass
    return _slow(fields, data)


def _slow(fields: list[Any], data: str) -> bytes:
    return _dumps([*fields, json.loads(data, parse_float=_number, parse_int=_whole)])


def _number(text: str) -> float | msgspec.Raw:
    """A number with a fraction or an exponent; as it was sent if it is beyond what a float holds."""
    value = float(text)
    if isinf(value):
        return msgspec.Raw(text.lower().encode())
    return int(value) if value.is_integer() and abs(value) < _EXACT else value


def _whole(text: str) -> int | msgspec.Raw:
    """An integer; as it was sent if it may have more digits than Python converts."""
    return int(text) if len(text) <= 40 else msgspec.Raw(text.encode())


def _dumps(value: object) -> bytes:
    """As msgspec writes it, and for lone surrogates, which it refuses, as the standard library does."""
    try:
        return _encode(value)
    except (ValueError, RecursionError):
        return json.dumps(value, default=_text, sort_keys=True, separators=(",", ":")).encode()


def _text(raw: msgspec.Raw) -> str:
    return bytes(raw).decode()


def _hash(text: bytes) -> bytes:
    return blake2b(text, digest_size=_SIZE).digest()


def _is_uuid(text: str) -> bool:
    if len(text) != 36:
        return False
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
