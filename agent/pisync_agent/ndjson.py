"""Recording many events from a stream of lines, in groups as they come in.

What has arrived when the last group is stored is the next group: one commit for each, no timer. A seq is printed for
each line once its event is stored. The first line that cannot be recorded ends it, with its number.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TextIO

from pisync_agent.clock import Clock, SystemClock
from pisync_agent.errors import AgentError, InvalidEvent, OutboxFull, StoreUnusable
from pisync_agent.outbox import NewEvent
from pisync_agent.recorder import Recorder
from pisync_common.limits import MIB

CHUNK_BYTES: Final = 256 * 1024
LINE_BYTES: Final = 1 * MIB
"""The longest line: far more than any valid event."""

ReadLine = Callable[[dict[str, Any]], Mapping[str, Any]]
"""What a line's JSON object says, as fields for `Recorder.record`; raises InvalidEvent."""

_FIELDS: Final = frozenset({"type", "learner_id", "object_id", "data", "id"})


def whole_event(line: dict[str, Any]) -> Mapping[str, Any]:
    """A line that is a whole event."""
    if unknown := sorted(line.keys() - _FIELDS):
        raise InvalidEvent(f"unknown field {unknown[0]!r}; there are {', '.join(sorted(_FIELDS))}")
    if "type" not in line:
        raise InvalidEvent('there is no "type"')
    return line


def record(recorder: Recorder, read: ReadLine, *, source: int, out: TextIO, clock: Clock | None = None) -> None:
    """Record each line that comes from the descriptor `source`, and print its seq to `out`.

    Raises InvalidEvent, OutboxFull or StoreUnusable, naming the line; the lines before it are stored and printed.
    """
    number, clock = 0, clock or SystemClock()
    for lines in _groups(source):
        events, places, bad = _events(lines, number, read, clock)
        _store(recorder, events, places, out)
        if bad is not None:
            raise bad
        number += len(lines)


def _events(
    lines: Sequence[bytes], number: int, read: ReadLine, clock: Clock
) -> tuple[list[NewEvent], list[int], AgentError | None]:
    """The events of lines that follow line `number`, the number of each, and what is wrong with the line after them."""
    events: list[NewEvent] = []
    places: list[int] = []
    for place, line in enumerate(lines, number + 1):
        if not line.strip():
            continue
        try:
            events.append(_event(line, read, clock))
        except InvalidEvent as error:
            return events, places, _at(place, error)
        places.append(place)
    return events, places, None


def _store(recorder: Recorder, events: Sequence[NewEvent], places: Sequence[int], out: TextIO) -> None:
    if not events:
        return
    try:
        results = recorder.record_many(events)
    except AgentError as error:
        raise _at(places[0], error) from error
    failed = [(place, result) for place, result in zip(places, results, strict=True) if isinstance(result, AgentError)]
    out.write("".join(f"{result}\n" for result in results if isinstance(result, int)))
    out.flush()
    if failed:
        raise _at(*failed[0])


def _event(line: bytes, read: ReadLine, clock: Clock) -> NewEvent:
    """The event of a line, checked before any of its group is stored. Raises InvalidEvent."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InvalidEvent("not a JSON object")
    fields = dict(read(found))
    return NewEvent.create(fields.pop("type"), stamp=clock.stamp(), key=fields.pop("id", None), **fields)


def _at(place: int, error: AgentError) -> AgentError:
    kind = next(kind for kind in (InvalidEvent, OutboxFull, StoreUnusable, AgentError) if isinstance(error, kind))
    said = str(error).rstrip(".")
    return kind(f"line {place}: {said}. It was not stored; each seq that was printed stands for a line that was")


def _groups(source: int) -> Iterator[list[bytes]]:
    """Whole lines, as many as have arrived. Raises InvalidEvent for a line without an end."""
    rest = b""
    while chunk := os.read(source, CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield lines
        if len(rest) > LINE_BYTES:
            yield [rest]
            return
    if rest:
        yield [rest]
