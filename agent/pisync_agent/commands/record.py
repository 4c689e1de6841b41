"""`pisync record`: one event from the command line, or many from a stream of lines.

The lines that have arrived when the last group is stored are the next group: one commit for each, no timer. A seq is
printed for each line once its event is stored. The first line that cannot be recorded ends it, with its number.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TextIO

import pisync_agent.config as config
from pisync_agent.clock import Clock, SystemClock
from pisync_agent.commands.usage import DONE, WrongUsage, settings_of
from pisync_agent.errors import AgentError, InvalidEvent, OutboxFull, StoreUnusable
from pisync_agent.outbox.events import NewEvent
from pisync_agent.recorder import Recorder
from pisync_common.errors import RuleError
from pisync_common.limits import MIB
from pisync_common.times import from_ms, parse_ms

CHUNK_BYTES: Final = 256 * 1024
LINE_BYTES: Final = 1 * MIB
"""The longest line: far more than any valid event."""

ReadLine = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Turns a line's JSON object into arguments of `Recorder.record`; raises InvalidEvent."""

_FIELDS: Final = frozenset({"type", "learner_id", "object_id", "data", "id", "occurred_at"})


def record(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    with Recorder(settings[config.HOME], limits=config.limits(settings)) as recorder:
        if "-" in (arguments.type, arguments.data):
            record_lines(recorder, line_reader(arguments), source=sys.stdin.fileno(), out=sys.stdout)
            return DONE
        seq = recorder.record(
            arguments.type,
            learner_id=arguments.learner,
            object_id=arguments.object,
            data=None if arguments.data is None else _data(arguments.data),
            id=arguments.id,
            occurred_at=None if arguments.at is None else _at(arguments.at),
        )
    print(seq)
    return DONE


def line_reader(arguments: argparse.Namespace) -> ReadLine:
    """Return how a line becomes an event. Raises WrongUsage where flags contradict that."""
    if arguments.id is not None or arguments.at is not None:
        raise WrongUsage(
            '--id and --at describe one event; with - give each line of `pisync record -` its own "id" or "occurred_at"'
        )
    if arguments.type != "-":
        fixed = {"type": arguments.type, "learner_id": arguments.learner, "object_id": arguments.object}
        return lambda line: fixed | {"data": line}
    if (arguments.learner, arguments.object, arguments.data) != (None, None, None):
        raise WrongUsage("with `pisync record -` each line is a whole event; remove --learner, --object and --data")
    return whole_event


def whole_event(line: dict[str, Any]) -> Mapping[str, Any]:
    """Read a line that is a whole event."""
    if unknown := sorted(line.keys() - _FIELDS):
        raise InvalidEvent(f"unknown field {unknown[0]!r}; known fields: {', '.join(sorted(_FIELDS))}")
    if "type" not in line:
        raise InvalidEvent('"type" is missing')
    if (text := line.get("occurred_at")) is None:
        return line
    if not isinstance(text, str):
        raise InvalidEvent("occurred_at is not a text, such as 2026-11-23T10:00:00+03:00")
    try:
        return line | {"occurred_at": _moment(text)}
    except RuleError as error:
        raise InvalidEvent(f"occurred_at: {error}") from error


def record_lines(recorder: Recorder, read: ReadLine, *, source: int, out: TextIO, clock: Clock | None = None) -> None:
    """Record each line that arrives from the descriptor `source`, and print its seq to `out`.

    Raises InvalidEvent, OutboxFull or StoreUnusable that names the line; the lines before it are stored and printed.
    """
    number, clock = 0, clock or SystemClock()
    for lines in _arrived_lines(source):
        events, places, bad = _events(lines, number, read, clock)
        _store(recorder, events, places, out)
        if bad is not None:
            raise bad
        number += len(lines)


def _events(
    lines: Sequence[bytes], number: int, read: ReadLine, clock: Clock
) -> tuple[list[NewEvent], list[int], AgentError | None]:
    """Return the events of lines after line `number`, the number of each, and the error of the line that ends them."""
    events: list[NewEvent] = []
    places: list[int] = []
    for place, line in enumerate(lines, number + 1):
        if not line.strip():
            continue
        try:
            events.append(_event(line, read, clock))
        except InvalidEvent as error:
            return events, places, _with_line(place, error)
        places.append(place)
    return events, places, None


def _store(recorder: Recorder, events: Sequence[NewEvent], places: Sequence[int], out: TextIO) -> None:
    if not events:
        return
    try:
        results = recorder.record_many(events)
    except AgentError as error:
        raise _with_line(places[0], error) from error
    failed = [(place, result) for place, result in zip(places, results, strict=True) if isinstance(result, AgentError)]
    out.write("".join(f"{result}\n" for result in results if isinstance(result, int)))
    out.flush()
    if failed:
        raise _with_line(*failed[0])


def _event(line: bytes, read: ReadLine, clock: Clock) -> NewEvent:
    """Return the event of a line, checked before any of its group is stored. Raises InvalidEvent."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InvalidEvent("not a JSON object")
    fields = dict(read(found))
    return NewEvent.create(fields.pop("type"), stamp=clock.stamp(), **fields)


def _with_line(place: int, error: AgentError) -> AgentError:
    kind = next(kind for kind in (InvalidEvent, OutboxFull, StoreUnusable, AgentError) if isinstance(error, kind))
    text = str(error).rstrip(".")
    return kind(f"line {place}: {text}. It was not stored; every line whose seq was printed was stored")


def _arrived_lines(source: int) -> Iterator[list[bytes]]:
    """Yield whole lines, as many as have arrived; a line that is too long is yielded unfinished and ends it."""
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


def _moment(text: str) -> datetime:
    return from_ms(parse_ms(text))


def _at(text: str) -> datetime:
    try:
        return _moment(text)
    except RuleError as error:
        raise WrongUsage(f"--at: {error}; nothing was recorded. Example: --at 2026-11-23T10:00:00+03:00") from error


def _data(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WrongUsage(
            f"--data is not JSON ({error}); nothing was recorded. Example: --data '{{\"score\": 7}}'"
        ) from error
    if not isinstance(data, dict):
        raise WrongUsage("--data must be a JSON object, such as '{\"score\": 7}'; nothing was recorded")
    return data
