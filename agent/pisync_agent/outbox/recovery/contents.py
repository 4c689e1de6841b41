"""Reads what an outbox file still holds, broken or not.

The newest intact version of a page counts. From its other versions, in the log and in the file, come only events that
no newest version holds: an event's row is written once, and its checksum proves it.
"""

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pisync_agent.outbox import sync_event_rows
from pisync_agent.outbox.database import BrokenOutbox
from pisync_agent.outbox.events import seq_of
from pisync_agent.outbox.models import QueuedSyncEvent
from pisync_agent.outbox.numbers import Numbers
from pisync_agent.outbox.pointers import Pointers, checksum
from pisync_agent.outbox.recovery.sqlite_pages import Pages, Row, Version
from pisync_common.limits import SEQ_MAX

UNKNOWN: Final = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """One row of the events table, as it could be read."""

    seq: int
    body: str
    attempt: int | None
    id: str | None
    intact: bool


@dataclass(kw_only=True)
class Contents:
    """What a file holds, except for its events: they are read again, page by page, when they are written."""

    state: Pointers | None = None
    stream: str = UNKNOWN
    dead: dict[tuple[str, int], tuple[Any, ...]] = field(default_factory=dict)
    sync_events: dict[str, QueuedSyncEvent] = field(default_factory=dict)
    salvaged: dict[tuple[Any, ...], None] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    leaves: list[tuple[int, int | Version]] = field(default_factory=list)
    """(lowest seq, page) of each page with events, and of other versions of pages."""
    newest: Numbers = field(default_factory=Numbers)
    """Events that are intact in the newest version of a page."""
    intact: Numbers = field(default_factory=Numbers)
    """Events that are intact in any version of a page."""
    whole: bool = True
    """Whether the file is not cut, and its log neither cut nor broken."""

    def add_leaf(self, page: int | Version, events: Sequence[Found]) -> None:
        """Remember a page with events, and which are intact."""
        if not events:
            return
        self.leaves.append((min(event.seq for event in events), page))
        for event in events:
            if event.intact:
                self.intact.add(event.seq)
                if not isinstance(page, Version):
                    self.newest.add(event.seq)


def read_file(path: Path, *, after: int = 0) -> Contents:
    """Read a file, broken or not; events up to `after` count as delivered. Raises OSError."""
    with Pages(path) as pages:
        return read_pages(pages, after=after)


def read_pages(pages: Pages, *, after: int = 0) -> Contents:
    """Read what the pages of a file hold; events up to `after` count as delivered."""
    found = Contents(whole=pages.whole)
    states: list[Pointers] = []
    for number in pages.numbers():
        found.add_leaf(number, _sorted(pages.rows(number), found, states))
    for other in pages.others:
        # A replaced version is out of date but for events, deleted once delivered, and dead letters, never deleted.
        target = Contents() if other.replaced else found
        found.add_leaf(other, _sorted(pages.other_rows(other), target, states if target is found else []))
        if other.replaced:
            for key, letter in target.dead.items():
                found.dead.setdefault(key, letter)
    if states:
        state = min(states, key=lambda state: state.delivered)
        found.state = replace(state, delivered=max(state.delivered, after))
    found.stream = found.state.stream if found.state else found.notes.get("stream", UNKNOWN)
    found.leaves.sort(key=lambda leaf: leaf[0])
    return found


def _sorted(rows: Iterable[Row], found: Contents, states: list[Pointers]) -> list[Found]:
    """File the rows of one page; return its events."""
    events = []
    for row in rows:
        if (event := event_of(row)) is not None:
            events.append(event)
        else:
            _sort(row, found, states)
    return events


def _sort(row: Row, found: Contents, states: list[Pointers]) -> None:
    """File a row of any table but events; its shape tells which table it is from."""
    match row.values:
        case (None, str(), int(), int(), int(), int(), int()) as state if checksum(state[1:6]) == state[6]:
            states.append(Pointers.from_row(state[1:]))
        case (None, str(stream), int(seq), str(), str(), str(), int() | None, int()) as dead:
            found.dead.setdefault((stream, seq), dead[1:])
        case (None, str(key), int(), str(), int(), int(), int(), str(), float() | int(), int()) as event:
            try:
                found.sync_events.setdefault(key, sync_event_rows.from_row((row.rowid, *event[1:])))
            except BrokenOutbox:  # damaged: progress events matter more
                return
        case (None, int(), str(), int(), int(), str()) as salvaged:
            found.salvaged.setdefault(salvaged[1:])
        case (str(name), str(value)):
            found.notes.setdefault(name, value)


def event_of(row: Row) -> Found | None:
    """Return the row as an event, intact or not; None if it is from another table."""
    match row.values:
        case (None, int(crc), int(), int() | None as attempt, str() | bytes() | None as id, str() | bytes() as body):
            text = body if isinstance(body, str) else body.decode("utf-8", "replace")
            stated = seq_of(text)
            intact = isinstance(body, str) and zlib.crc32(body.encode()) == crc and stated is not None
            seq = stated if intact and stated is not None else row.rowid
            if not 1 <= seq <= SEQ_MAX:
                return None
            id = id if isinstance(id, str) and id else None
            return Found(seq=seq, body=text, attempt=attempt, id=id, intact=intact)
    return None


def events(pages: Pages, contents: Contents) -> Iterator[Found]:
    """Yield all events, nearly in order: of each the newest intact version, or what is left if no version is intact."""
    for _, page in contents.leaves:
        if isinstance(page, Version):
            rows, better, remains = pages.other_rows(page), contents.newest, page.page > 0 and not page.replaced
        else:
            rows, better, remains = pages.rows(page), Numbers(), True
        found = [event for row in rows if (event := event_of(row)) is not None]
        for event in sorted(found, key=lambda event: event.seq):
            if event.seq not in better if event.intact else remains and event.seq not in contents.intact:
                yield event
