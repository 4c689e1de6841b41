"""`pisync record`: one event from the command line, or many from a stream of lines.

The lines that have arrived when the last group is stored are the next group: one commit for each, no timer. A seq is
printed for each line once its event is stored (nothing but a line end for an empty line), so that the nth line printed
belongs to the nth line read. The first line that is refused ends it: nothing after it is stored, and the error names
it, so that a caller can go on from there.
"""

import argparse
import dataclasses
import json
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, TextIO

import pisync_agent.config as config
from pisync_agent.clock import Clock, SystemClock
from pisync_agent.commands.command import OUTBOX, Command
from pisync_agent.commands.usage import DONE, Unfinished, WrongUsage, settings_of
from pisync_agent.errors import AgentError, InvalidEvent, OutboxFull, StoreUnusable
from pisync_agent.outbox.app_events import whole_event
from pisync_agent.outbox.events import NewEvent
from pisync_agent.recorder import Recorder
from pisync_common.errors import RuleError
from pisync_common.limits import KIB, MIB
from pisync_common.streams import OutputFailed, discard_output
from pisync_common.times import from_ms, parse_ms

CHUNK_BYTES: Final = 256 * 1024
LINE_BYTES: Final = 1 * MIB
"""The longest line: far more than any valid event."""
GROUP_LINES: Final = 250
GROUP_BYTES: Final = 48 * KIB
"""A group is one line at least. With this it is one message of a recorder, and one commit: all of it or a prefix."""

_STOPPING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends reading lines, with a message that says which are stored."""

ReadLine = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Turns a line's JSON object into arguments of `Recorder.record`; raises InvalidEvent."""


def record(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    with Recorder(settings[config.HOME], limits=config.limits(settings)) as recorder:
        if "-" in (arguments.type, arguments.data):
            for number in _STOPPING:
                if signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, signal.default_int_handler)
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
    try:
        print(seq, flush=True)
    except OutputFailed as error:
        discard_output()
        print(f"pisync: event {seq} is stored, but its number cannot be printed ({error})", file=sys.stderr)
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


def record_lines(recorder: Recorder, read: ReadLine, *, source: int, out: TextIO, clock: Clock | None = None) -> None:
    """Record each line that arrives from the descriptor `source`, and print its seq to `out`.

    Raises InvalidEvent, OutboxFull or StoreUnusable that names the line that was refused: the lines before it are
    stored, nothing after it is. Raises Unfinished where reading or printing ended it.
    """
    stored, underway, clock, lines = 0, 0, clock or SystemClock(), Lines(source)
    try:
        for group in lines.groups():
            entries, bad = _entries(group, read, clock)
            underway = len(entries)
            with _undisturbed():
                seqs, refused = _store(recorder, entries)
                stored, underway = stored + len(seqs), 0
                unprinted = _print(seqs, out)
            if (error := refused or bad) is not None:
                raise _refused(error, stored, len(entries) - len(seqs))
            if unprinted is not None:
                text = f"not all numbers from line {stored - len(seqs) + 1:,} on could be printed ({unprinted})"
                if not lines.over:
                    raise Unfinished(text)
                print(f"pisync: {text}, but every line is stored", file=sys.stderr)
    except Unfinished as error:
        raise Unfinished(f"{error}: {_resume(stored)}") from error
    except KeyboardInterrupt:
        print(f"pisync: stopped: {_resume(stored, underway)}", file=sys.stderr)
        raise


def _entries(group: Sequence[bytes], read: ReadLine, clock: Clock) -> tuple[list[NewEvent | None], AgentError | None]:
    """Return the events of a group's lines, None for an empty line, and the error of the line that ends them."""
    entries: list[NewEvent | None] = []
    for line in group:
        try:
            event = _event(line, read, clock)
        except InvalidEvent as error:
            return entries, error
        entries.append(event and dataclasses.replace(event, follows=any(entries)))
    return entries, None


def _store(recorder: Recorder, entries: Sequence[NewEvent | None]) -> tuple[list[int | None], AgentError | None]:
    """Return the seqs up to the first event that was refused, and its error. No event behind it is stored."""
    events = [entry for entry in entries if entry is not None]
    results: Iterable[int | AgentError]
    try:
        results = recorder.record_many(events) if events else []
    except AgentError as error:
        results = [error] * len(events)
    seqs: list[int | None] = []
    remaining = iter(results)
    for entry in entries:
        result = None if entry is None else next(remaining)
        if isinstance(result, AgentError):
            return seqs, result
        seqs.append(result)
    return seqs, None


def _print(seqs: Sequence[int | None], out: TextIO) -> OutputFailed | None:
    """Print a line for each; return the error if that failed."""
    try:
        out.write("".join("\n" if seq is None else f"{seq}\n" for seq in seqs))
        out.flush()
    except OutputFailed as error:
        discard_output()
        return error
    return None


def _event(line: bytes, read: ReadLine, clock: Clock) -> NewEvent | None:
    """Return the event of a line, checked before any of its group is stored. Raises InvalidEvent."""
    if len(line) > LINE_BYTES:
        raise InvalidEvent(f"longer than {LINE_BYTES:,} bytes, which no valid event is")
    if not line.strip():
        return None
    try:
        found = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidEvent(f"not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InvalidEvent("not a JSON object")
    fields = dict(read(found))
    return NewEvent.create(fields.pop("type"), stamp=clock.stamp(), **fields)


def _refused(error: AgentError, stored: int, underway: int) -> AgentError:
    kind = next(kind for kind in (InvalidEvent, OutboxFull, StoreUnusable, AgentError) if isinstance(error, kind))
    text = str(error).rstrip(".")
    unknown = underway if error.uncertain else 0
    return kind(f"line {stored + 1}: {text}. {_resume(stored, unknown).capitalize()}")


def _resume(stored: int, unknown: int = 0) -> str:
    """Say how much is stored, and where to go on. Of the next `unknown` lines it is unknown."""
    done = {0: "no line is stored", 1: "line 1 is stored"}.get(stored, f"lines 1 to {stored:,} are stored")
    if unknown:
        return (
            f"{done}, the next {unknown:,} perhaps; send again from line {stored + 1:,}: events with an id are stored "
            "once, of the others look first which `pisync queue list` shows"
        )
    return f"{done}, nothing after; send again from line {stored + 1:,}"


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let Ctrl-C and the like wait until a group is stored and printed. The second time ends at once."""
    handled = [number for number in _STOPPING if signal.getsignal(number) is signal.default_int_handler]
    interrupted = False

    def note(number: int, frame: object) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True

    for each in handled:
        signal.signal(each, note)
    try:
        yield
    finally:
        for each in handled:
            signal.signal(each, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt


class Lines:
    """The lines that arrive from a descriptor. A line that is too long is cut, and the last."""

    def __init__(self, source: int) -> None:
        self._source = source
        self._arrived: deque[bytes] = deque()
        self._rest = b""
        self._ended = False

    def groups(self) -> Iterator[list[bytes]]:
        """Yield the lines that have arrived, at most one commit at a time. Raises Unfinished."""
        while self._arrived or not self._ended:
            if self._arrived:
                yield self._take()
            else:
                self._read()

    @property
    def over(self) -> bool:
        """Whether all lines were taken and no more can come. It does not wait."""
        while not (self._ended or self._arrived or self._rest) and select.select([self._source], [], [], 0)[0]:
            self._read()
        return self._ended and not self._arrived

    def _take(self) -> list[bytes]:
        group = [self._arrived.popleft()]
        size = len(group[0])
        while self._arrived and len(group) < GROUP_LINES and size + len(self._arrived[0]) <= GROUP_BYTES:
            group.append(self._arrived.popleft())
            size += len(group[-1])
        return group

    def _read(self) -> None:
        """Read once, and divide into lines."""
        chunk = self._chunk()
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._arrived.extend(lines)
        self._ended = not chunk or len(self._rest) > LINE_BYTES
        if self._ended and self._rest:
            self._arrived.append(self._rest)
            self._rest = b""

    def _chunk(self) -> bytes:
        while True:
            try:
                return os.read(self._source, CHUNK_BYTES)
            except BlockingIOError:  # a parent has made the pipe non-blocking
                select.select([self._source], [], [])
            except OSError as error:
                raise Unfinished(f"standard input cannot be read ({error.strerror})") from error


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


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("type", metavar="TYPE", help="what happened, as noun.verb; - reads whole events as NDJSON")
    parser.add_argument("--learner", metavar="ID", help="who did it")
    parser.add_argument("--object", metavar="ID", help="with what: a video, a page, an assignment")
    parser.add_argument(
        "--at", metavar="TIME", help="when it happened, such as 2026-11-23T10:00:00+03:00; default: now"
    )
    parser.add_argument("--data", metavar="JSON|-", help="details, a JSON object; - reads many as NDJSON")
    parser.add_argument("--id", metavar="KEY", help="your own key of this event: the same key twice is stored once")


RECORD: Final = Command(
    run=record,
    example="record quiz.taken --learner s-17 --object math/g5 --data '{\"score\": 7}'",
    arguments=_arguments,
    settings=OUTBOX,
    more=(
        "Many events come from standard input, one JSON object a line, and are stored in groups as they come in:\n"
        "  pisync record note.taken --data - < notes.ndjson  each line: an event's data\n"
        "  pisync record - < events.ndjson                   each line: a whole event\n"
        '    {"type": "note.taken", "learner_id": "s-17", "object_id": "math/g5",\n'
        '     "data": {}, "id": "app-981", "occurred_at": "2026-11-23T10:00:00+03:00"}\n'
        "The seq of each line is printed on a line of its own once the event is stored; an empty line gives an\n"
        "empty line. The first line that is refused ends it: the lines before it are stored, nothing after it is,\n"
        "and the message names the line from which to send again. So it does after Ctrl-C or if output fails.\n\n"
        "0 means that all is stored, even if its seq could not be printed; a message says so then."
    ),
)
