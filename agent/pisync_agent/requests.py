"""The service's side of the socket's messages: what a line asks for, and recording for many at once."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pisync_agent import local
from pisync_agent.errors import AgentError, InvalidEvent, StoreUnusable
from pisync_agent.outbox import NewEvent, Outbox

log = logging.getLogger(__name__)

Events = Sequence[NewEvent | InvalidEvent]
"""What one request brings: each is valid, or says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One line, read. `events` is for a record alone."""

    do: str
    message: Mapping[str, Any] = field(default_factory=dict)
    events: Events | None = None


def read(line: bytes) -> Request:
    """What a line asks for; one that is no message asks for nothing known."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return Request("")
    if not isinstance(message, dict):
        return Request("")
    events = message.get("events")
    if message.get("do") == local.RECORD and isinstance(events, list):
        return Request(local.RECORD, events=[_event(fields) for fields in events])
    return Request(str(message.get("do")), message)


def record(outbox: Outbox, requests: Sequence[Request]) -> list[dict[str, object] | None]:
    """Record the events of all requests in one commit; for each request its answer, None if it is no record."""
    recordings = [request.events for request in requests if request.events is not None]
    answers = iter(_recorded(outbox, recordings) if recordings else [])
    return [None if request.events is None else next(answers) for request in requests]


def _recorded(outbox: Outbox, recordings: Sequence[Events]) -> list[dict[str, object]]:
    new = [event for events in recordings for event in events if isinstance(event, NewEvent)]
    try:
        results = iter(outbox.append(new) if new else [])
    except AgentError as error:
        return [local.error_answer(error)] * len(recordings)
    except Exception as error:
        # Nobody foresaw it, so it may be one event's doing: it must neither end the service nor spoil its neighbours.
        log.exception("recording failed")
        if len(recordings) > 1:
            return [_recorded(outbox, [events])[0] for events in recordings]
        return [local.error_answer(StoreUnusable(f"the service failed at this ({type(error).__name__}); see its log"))]
    return [_answer(events, results) for events in recordings]


def _answer(events: Events, results: Iterator[int | AgentError]) -> dict[str, object]:
    return local.record_answer([event if isinstance(event, InvalidEvent) else next(results) for event in events])


def _event(fields: object) -> NewEvent | InvalidEvent:
    if not isinstance(fields, dict):
        return InvalidEvent("an event is a JSON object")
    try:
        return NewEvent.from_fields(fields)
    except InvalidEvent as error:
        return error
