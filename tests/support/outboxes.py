"""Outboxes for tests: a clock that stands still, events by number, receipts in one line."""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pisync_agent.outbox.events import NewEvent
from pisync_agent.outbox.models import DeadLetter, OutboxLimits
from pisync_agent.outbox.outbox import Outbox, open_outbox
from pisync_agent.outbox.reader import OutboxReader
from pisync_common.models import Receipt, Rejection, Stamp
from pisync_common.sqlite import Connect, connect

STAMP = Stamp(
    at_ms=1_795_424_400_000, boot_id="b0070000-0000-4000-8000-000000000001", boottime_ms=99_001, clock_synced=False
)


class StillClock:
    """A clock set by hand."""

    def __init__(self, stamp: Stamp = STAMP) -> None:
        self.now = stamp

    def stamp(self) -> Stamp:
        return self.now

    def monotonic(self) -> float:
        return self.now.boottime_ms / 1000


def event(number: int = 0, *, size: int = 0, **fields: Any) -> NewEvent:
    """The event `number`, with `size` more bytes of data."""
    data: dict[str, object] = {"n": number}
    if size:
        data["pad"] = "x" * size
    sent = {name: fields.pop(name) for name in ("attempt", "retried") if name in fields}
    defaults: dict[str, Any] = {"learner_id": "s-17", "object_id": "math/g5/ch02/v03", "data": data, "stamp": STAMP}
    return replace(NewEvent.create("video.watched", **(defaults | fields)), **sent)


def events(count: int, *, first: int = 1, size: int = 0) -> list[NewEvent]:
    return [event(number, size=size) for number in range(first, first + count)]


def opened(
    home: Path,
    *,
    limits: OutboxLimits | None = None,
    connect: Connect = connect,
    disk: int | None = None,
    random_hex: Callable[[int], str] | None = None,
) -> Outbox:
    """The outbox of `home` with a still clock; on a disk of `disk` bytes that it has for itself, or the real one."""
    extra: dict[str, Any] = {}
    if disk is not None:
        extra["free_bytes"] = lambda folder: max(0, disk - (folder / "outbox.db").stat().st_size)
    if random_hex is not None:
        extra["random_hex"] = random_hex
    return open_outbox(home, limits=limits, clock=StillClock(), connect=connect, **extra)


def receipt(
    outbox: Outbox,
    watermark: int,
    *,
    rejected: Sequence[tuple[int, str]] = (),
    missing: Sequence[tuple[int, int]] = (),
    stream: str | None = None,
) -> Receipt:
    return Receipt(
        device_id="pibook-1",
        stream=stream or outbox.stream,
        stored=0,
        duplicates=0,
        rejected=tuple(Rejection(seq=seq, code=code, detail="because") for seq, code in rejected),
        watermark=watermark,
        server_time="2026-11-23T10:00:00.000Z",
        missing=tuple(missing),
    )


def deliver(outbox: Outbox, upto: int) -> None:
    """As if everything up to `upto` had been stored by the receiver."""
    first = outbox.delivered + 1
    outbox.settle(receipt(outbox, upto), list(range(first, upto + 1)))


def seqs(outbox: Outbox, after: int = 0) -> list[int]:
    return [seq for seq, _ in outbox.read(after, max_events=1_000_000, max_bytes=2**40)]


def bodies(outbox: Outbox, after: int = 0) -> list[str]:
    return [body for _, body in outbox.read(after, max_events=1_000_000, max_bytes=2**40)]


def dead_letters(outbox: Outbox) -> list[DeadLetter]:
    """What a reader finds beside the open outbox."""
    with OutboxReader(outbox.path.parent) as reader:
        return reader.dead_letters()


def event_text(outbox: Outbox, seq: int) -> str | None:
    """The text of an event or dead letter, as a reader finds it beside the open outbox."""
    with OutboxReader(outbox.path.parent) as reader:
        return reader.event(seq)


class Failing:
    """A connection whose statements fail as told: `fault(sql)` raises, or not."""

    def __init__(self, inner: Any, fault: Callable[[str], None]) -> None:
        self._inner = inner
        self._fault = fault

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Any:
        self._fault(sql)
        return self._inner.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        self._fault(sql)
        return self._inner.executemany(sql, parameters)

    def close(self) -> None:
        self._inner.close()


class Faults:
    """`connect` for an outbox whose every statement first asks `fault`."""

    def __init__(self) -> None:
        self.fault: Callable[[str], None] = lambda sql: None

    def _ask(self, sql: str) -> None:
        self.fault(sql)

    def connect(self, path: Path, *, readonly: bool) -> Failing:
        return Failing(connect(path, readonly=readonly), self._ask)


def sqlite_error(kind: type[sqlite3.Error], text: str, name: str) -> sqlite3.Error:
    """An error as SQLite raises it."""
    error = kind(text)
    error.sqlite_errorname = name
    return error


def full_disk() -> sqlite3.Error:
    return sqlite_error(sqlite3.OperationalError, "database or disk is full", "SQLITE_FULL")
