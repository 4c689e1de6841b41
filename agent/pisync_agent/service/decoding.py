"""Decoding of what apps send: JSON at a bounded cost, and events in the recorder's form or in an app's own.

A JSON text of more than TOKENS values is refused before it is decoded, since its values would take a hundred times its
size.
"""

import itertools
import json
import logging
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pisync_agent.errors import InvalidEvent, StoreUnusable
from pisync_agent.outbox.app_events import new_event
from pisync_agent.outbox.events import NewEvent
from pisync_agent.service import protocol
from pisync_common.models import Stamp

log = logging.getLogger(__name__)

TOKENS: Final = 64 * protocol.RECORD_EVENTS
"""Strings, numbers, objects and so on in one text; an event that a recorder sends has 25."""

_TOKEN: Final = re.compile(rb'"(?>[^"\\]+|\\.)*+"|[\[{]|[^\s\[\]{},:"]++', re.DOTALL)

Events = Sequence[NewEvent | InvalidEvent]


@dataclass(frozen=True, kw_only=True)
class Message:
    """A decoded line of the socket. `events` is set for a record only; some of them may be invalid."""

    do: str = ""
    """Empty for a line that is no message; `fault` says why."""
    values: Mapping[str, Any] = field(default_factory=dict)
    events: Events | None = None
    fault: str = ""


def decode_line(line: bytes, stamp: Callable[[], Stamp]) -> Message:
    """Return what a line asks for, and the values with it. Nothing else of the line is kept."""
    try:
        message = decode(line)
    except ValueError as error:
        return Message(fault=str(error))
    if not isinstance(message, dict) or not isinstance(message.get("do"), str):
        return Message(fault='not a JSON object with "do"')
    values = {name: message[name] for name in protocol.VALUES if isinstance(message.get(name), int | str)}
    if message["do"] != protocol.RECORD:
        return Message(do=message["do"], values=values)
    events = message.get("events")
    if not isinstance(events, list) or len(events) > protocol.RECORD_EVENTS:
        return Message(fault=f'record needs "events", an array of at most {protocol.RECORD_EVENTS} objects')
    return Message(do=protocol.RECORD, values=values, events=decode_events(events, stamp))


def decode(text: bytes) -> Any:
    """Return the value of a JSON text; raise ValueError that says what is wrong with it."""
    if _has_too_many_values(text):
        raise ValueError(f"more than {TOKENS:,} values; send fewer events at once")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("not JSON: nested too deep") from error
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error


def decode_events(written: Sequence[object], stamp: Callable[[], Stamp]) -> Events:
    """Return each event, or why it is invalid."""
    return [_event(each, stamp) for each in written]


def unexpected(error: Exception) -> StoreUnusable:
    """Log a fault of the program, and return it as the answer to its request. Its text may quote an event."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    log.error("a request failed unexpectedly: %s at %s:%s", type(error).__name__, where.filename, where.lineno)
    return StoreUnusable(f"the service failed to do this ({type(error).__name__}); see its log")


def _event(written: object, stamp: Callable[[], Stamp]) -> NewEvent | InvalidEvent:
    if not isinstance(written, dict):
        return InvalidEvent("an event is a JSON object")
    try:
        return NewEvent.from_fields(written) if "stamp" in written else new_event(written, stamp())
    except InvalidEvent as error:
        return error
    except Exception as error:
        return InvalidEvent(f"not an event: {unexpected(error)}")


def _has_too_many_values(text: bytes) -> bool:
    if 2 * sum(map(text.count, (b",", b"[", b"{"))) < TOKENS:  # inside texts too, so most need no second look
        return False
    return next(itertools.islice(_TOKEN.finditer(text), TOKENS, None), None) is not None
