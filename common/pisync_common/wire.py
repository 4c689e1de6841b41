"""The bytes of the wire, as the device writes and reads them.

An event is encoded once, when it is recorded, and keeps those bytes: a batch is a head and the events' own texts joined
by commas. So a retry sends the same bytes, and draining a queue costs no JSON work.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from pisync_common.limits import BATCH_EVENTS, RECEIPT_RANGES, SEQ_MAX
from pisync_common.models import Origin, Receipt, Rejection, Stamp, SyncEvent
from pisync_common.times import format_ms, parse_ms

NONCE_HEADER: Final = "PiSync-Nonce"
"""A random text in a request's head, which the receiver echoes: the agent believes no answer without it."""

RECEIVER_HEADER: Final = "PiSync-Receiver"
"""In an answer to a device: the address that the receiver asks it to use from now on."""

SYNC_HEADER: Final = "PiSync-Sync"
"""In an answer to a device, with the value `now`: an admin asks it to deliver everything at once."""

_CODE: Final = re.compile(r"[a-z0-9_]{1,64}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_DETAIL_CHARS: Final = 300
_SHOWN: Final = 40

# `json.dumps` with options makes an encoder for each call, which costs more than the encoding.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def dumps(value: object) -> str:
    """Return compact JSON text."""
    return _ENCODER.encode(value)


def encode_event(
    *,
    seq: int,
    type: str,
    stamp: Stamp,
    occurred_at_ms: int | None = None,
    id: str | None = None,
    learner_id: str | None = None,
    object_id: str | None = None,
    data: str | None = None,
    origin: Origin | None = None,
) -> str:
    """Return one event's JSON text; fields that are None are left out.

    `stamp` is the moment of recording, `occurred_at_ms` the app's own time where it gave one. `data` is JSON text
    already (see `rules.encode_data`).
    """
    head: dict[str, object] = {"seq": seq, "type": type}
    if id is not None:
        head["id"] = id
    if learner_id is not None:
        head["learner_id"] = learner_id
    if object_id is not None:
        head["object_id"] = object_id
    if occurred_at_ms is None or occurred_at_ms == stamp.at_ms:
        head |= stamp_fields(stamp, at="occurred_at")
    else:
        head["occurred_at"] = format_ms(occurred_at_ms)
        head |= stamp_fields(stamp, at="recorded_at")
    if origin is not None:
        head["origin"] = origin_fields(origin)
    text = dumps(head)
    return text if data is None else f'{text[:-1]},"data":{data}}}'


def encode_batch(*, device_id: str, stream: str, sent: Stamp, agent: str, events: Iterable[str]) -> bytes:
    """Return a batch's body from the events' own texts. `sent` is stamped for each attempt, never kept."""
    opening = open_batch(device_id=device_id, stream=stream, agent=agent)
    return f"{opening}{','.join(events)}{close_batch(sent)}".encode()


def open_batch(*, device_id: str, stream: str, agent: str) -> str:
    """Return a batch's text up to its events: these follow, joined by commas, then `close_batch`."""
    head = dumps({"device_id": device_id, "stream": stream, "agent": agent})
    return f'{head[:-1]},"events":['


def close_batch(sent: Stamp) -> str:
    """Return the end of a batch's text. All before it can be prepared while another batch is in flight."""
    return f'],"sent":{dumps(stamp_fields(sent, at="at"))}}}'


def decode_receipt(body: bytes) -> Receipt:
    """Read a receipt; raise ValueError if it is anything else, or has a number or a text that no receiver sends.

    So whatever is returned can be stored and shown.
    """
    try:
        answer = json.loads(body)
        return Receipt(
            device_id=_text(answer["device_id"]),
            stream=_text(answer["stream"]),
            stored=_count(answer["stored"], most=BATCH_EVENTS),
            duplicates=_count(answer["duplicates"], most=BATCH_EVENTS),
            rejected=tuple(_rejection(row) for row in _list(answer["rejected"], most=BATCH_EVENTS)),
            watermark=_count(answer["watermark"]),
            server_time=_time(answer["server_time"]),
            missing=tuple(_range(row) for row in _list(answer.get("missing", []), most=RECEIPT_RANGES)),
        )
    except KeyError as error:
        raise ValueError(f"it has no {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def encode_sync_event(event: SyncEvent) -> bytes:
    """Return the body of `POST /api/sync-event`."""
    fields: dict[str, object] = {
        "device_id": event.device_id,
        "timestamp": event.timestamp,
        "total_files_synced": event.total_files_synced,
        "total_errors": event.total_errors,
        "internet_speed": event.internet_speed,
    }
    if event.errors:
        fields["errors"] = dict(event.errors)
    return dumps(fields).encode()


def origin_fields(origin: Origin) -> dict[str, object]:
    """Return an origin as JSON fields."""
    whose: dict[str, object] = {} if origin.device_id is None else {"device_id": origin.device_id}
    return whose | {"stream": origin.stream, "seq": origin.seq}


def stamp_fields(stamp: Stamp, *, at: str) -> dict[str, object]:
    """Return a stamp as JSON fields; `at` names the wall clock's field."""
    return {
        at: format_ms(stamp.at_ms),
        "boot_id": stamp.boot_id,
        "boottime_ms": stamp.boottime_ms,
        "clock_synced": stamp.clock_synced,
    }


def _rejection(row: dict[str, object]) -> Rejection:
    code, detail = _text(row["code"]), _text(row["detail"])
    if not _CODE.fullmatch(code):
        raise ValueError(f"expected a code, got {code[:_SHOWN]!r}")
    return Rejection(seq=_count(row["seq"], least=1), code=code, detail=_one_line(detail))


def _one_line(text: str) -> str:
    """Return a text fit for a terminal and a log, of bounded length."""
    return "".join(each if each.isprintable() else " " for each in text[:_DETAIL_CHARS])


def _range(row: object) -> tuple[int, int]:
    first, last = _list(row, most=2)
    return _count(first, least=1), _count(last, least=_count(first))


def _time(value: object) -> str:
    text = _text(value)
    parse_ms(text)
    return text


def _list(value: object, *, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise TypeError(f"expected a list of at most {most}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {type(value).__name__}")
    if _SURROGATE.search(value):
        raise ValueError("expected text, got a lone surrogate, which could not be stored")
    return value


def _count(value: object, *, least: int = 0, most: int = SEQ_MAX) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise TypeError(f"expected an integer from {least} to {most}")
    return value
