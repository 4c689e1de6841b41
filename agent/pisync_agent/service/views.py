"""What `status` and `queue` show of the outbox, from its file or from the service.

The file is the agent's user's. The service shows it to the agent's group, which may record but not read what learners
did: PUBLIC has no learner, object or data. It answers in pages of at most PAGE rows.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final, Protocol

import pisync_agent.identity as identities
from pisync_agent.errors import NotEnrolled, StoreUnusable
from pisync_agent.identity import Identity
from pisync_agent.outbox import files
from pisync_agent.outbox.faults import Fault
from pisync_agent.outbox.models import LAST_RUN, OutboxState
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.outbox.recovery.log import WAL_HEADER
from pisync_agent.service import history, protocol
from pisync_agent.service.access import owner_hint, read_hint
from pisync_common.limits import SEQ_MAX

PAGE: Final = 100
SALVAGED: Final = 20
"""The newest files set aside that the service names."""
DETAIL_CHARS: Final = 500
PUBLIC: Final = ("stream", "seq", "state", "type", "occurred_at", "bytes", "code", "detail", "requeued_as")

Row = dict[str, Any]


class Found(Enum):
    """What a user finds at the outbox's path."""

    NOTHING = auto()
    OUTBOX = auto()
    HIDDEN = auto()


class View(Protocol):
    """One way to look. Raises StoreUnusable."""

    def state(self) -> dict[str, Any]:
        """Return `device_id`, `url`, `outbox` (the fields of OutboxState) and `last_run`."""

    def events(self, after: int, limit: int, *, everything: bool) -> list[Row]:
        """Return held events after `after`; only those not delivered unless `everything`."""

    def dead(self) -> list[Row]:
        """Return the dead letters, oldest first."""

    def event(self, seq: int) -> str | None:
        """Return the text of an event, or of its dead letter."""


class FileView:
    """Reads the file itself. Without a reader nothing was ever recorded."""

    def __init__(self, home: Path, reader: OutboxReader | None) -> None:
        self._home = home
        self._reader = reader

    def state(self) -> dict[str, Any]:
        note = None if self._reader is None else self._reader.note(LAST_RUN)
        return _about(_identity(self._home)) | {
            "outbox": shown(OutboxState() if self._reader is None else self._reader.state()),
            "last_run": history.parsed(note or ""),
        }

    def events(self, after: int, limit: int, *, everything: bool) -> list[Row]:
        if self._reader is None:
            return []
        start = after if everything else max(after, self._reader.state().delivered)
        found = self._reader.list_events(start, limit)
        return [{"seq": seq, "state": str(state)} | _fields(body) for seq, body, state in found]

    def dead(self) -> list[Row]:
        return self.dead_page(0, -1)

    def dead_page(self, skip: int, limit: int) -> list[Row]:
        letters = [] if self._reader is None else self._reader.dead_letters(skip, limit)
        return [asdict(letter) | _fields(letter.body) for letter in letters]

    def event(self, seq: int) -> str | None:
        return None if self._reader is None else self._reader.event(seq)


class ServiceView:
    """Asks the service."""

    def __init__(self, home: Path, state: dict[str, Any]) -> None:
        self._home = home
        self._state = state

    def state(self) -> dict[str, Any]:
        return self._state

    def events(self, after: int, limit: int, *, everything: bool) -> list[Row]:
        rows: list[Row] = []
        while page := self._rows("events", after=after, limit=limit - len(rows), all=everything):
            rows += page
            after = page[-1]["seq"]
        return rows

    def dead(self) -> list[Row]:
        return self._pages("dead")

    def event(self, seq: int) -> str | None:
        raise StoreUnusable(f"events are shown without what learners did; {owner_hint(self._home)}")

    def runs(self) -> list[Row]:
        return self._pages("runs")

    def _pages(self, what: str) -> list[Row]:
        rows: list[Row] = []
        while page := self._rows(what, after=len(rows), limit=PAGE):
            rows += page
        return rows

    def _rows(self, what: str, *, limit: int, **fields: int) -> list[Row]:
        if limit <= 0:
            return []
        found = protocol.read(files.socket(self._home), what, {"limit": limit, **fields})
        if found is None:
            raise StoreUnusable(f"the service has stopped: {read_hint(self._home)}")
        rows: list[Row] = found["rows"]
        return rows


def shown(state: OutboxState) -> Row:
    """Return what a reader knows of the outbox: all but the writer's cap."""
    return {name: value for name, value in asdict(state).items() if name != "bytes_max"}


@contextmanager
def look(home: Path) -> Iterator[View]:
    """Open the best view this user has. Raises StoreUnusable."""
    path = files.database(home)
    with files.errors(path):
        found = _found(path)
    if found is Found.HIDDEN:
        yield _through_service(home)
    elif found is Found.NOTHING:
        yield FileView(home, None)
    else:
        with OutboxReader(home) as reader:
            yield FileView(home, reader)


def runs(home: Path, limit: int) -> list[Row]:
    """Return the newest sync runs (see `history`), newest first. Raises StoreUnusable."""
    with files.errors(home):
        try:
            return history.runs(home, limit)
        except PermissionError:
            return _through_service(home).runs()[:limit]


def answer(home: Path, identity: Identity | None, message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the service's answer to a `read` message. Raises BadMessage, StoreUnusable."""
    after, limit = message.get("after", 0), message.get("limit", PAGE)
    if not (type(after) is int and 0 <= after <= SEQ_MAX and type(limit) is int and limit > 0):
        raise protocol.BadMessage("`after` and `limit` are whole numbers")
    limit = min(limit, PAGE)
    if message.get("what") == "runs":
        with files.errors(home):
            return {"rows": history.runs(home)[after : after + limit]}
    with OutboxReader(home) as reader:
        view = FileView(home, reader)
        match message.get("what"):
            case "state":
                found = view.state() | _about(identity)
                found["outbox"]["salvaged"] = found["outbox"]["salvaged"][-SALVAGED:]
                return found
            case "events":
                rows = view.events(after, limit, everything=message.get("all") is True)
            case "dead":
                rows = view.dead_page(after, limit)
            case _:
                raise protocol.BadMessage("`what` is state, events, dead or runs")
    return {"rows": [_public(row) for row in rows]}


def _through_service(home: Path) -> ServiceView:
    try:
        state = protocol.read(files.socket(home), "state", timeout=protocol.STATUS_S)
    except PermissionError:
        state = None
    if state is None:
        error = StoreUnusable(read_hint(home))
        error.fault = Fault.NOT_PERMITTED
        raise error
    return ServiceView(home, state)


def _found(path: Path) -> "Found":
    """Return what this user finds at the outbox's path. Raises OSError."""
    try:
        file = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if any(each.is_symlink() and not each.exists() for each in (path, *path.parents)):
            raise  # its disk is not mounted: what was recorded there is unknown
        file = None
    except PermissionError:
        return Found.HIDDEN
    if file is None or not file.st_size:
        return _found_without_pages(path)
    if file.st_uid != os.geteuid() and not os.access(path, os.R_OK):
        return Found.HIDDEN
    return Found.OUTBOX


def _found_without_pages(path: Path) -> "Found":
    """Return NOTHING, unless a log says that there was an outbox. Raises StoreUnusable."""
    log = files.companion(path, "-wal")
    if log.exists() and log.stat().st_size > WAL_HEADER:
        error = StoreUnusable(
            f"{path} is missing or empty, but its log is not: the newest events are in {log.name}. Keep that file. "
            "The service (`pisync run`) transfers them to a new file when it starts."
        )
        error.fault = Fault.DAMAGED
        raise error
    return Found.NOTHING


def _identity(home: Path) -> Identity | None:
    """Return the identity; None if there is none, or it cannot be used."""
    try:
        return identities.load(home)
    except NotEnrolled:
        return None


def _about(identity: Identity | None) -> dict[str, Any]:
    return {"device_id": identity and identity.device_id, "url": identity and identity.url}


def _fields(body: str) -> Row:
    """Return what a row shows of an event's text; a damaged text shows its size."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        event = {}
    names = ("type", "occurred_at", "learner_id", "object_id")
    return {name: event.get(name) for name in names} | {"bytes": len(body.encode(errors="replace"))}


def _public(row: Row) -> Row:
    """Return what the agent's group may read of a row, bounded."""
    return {name: _short(row[name]) for name in PUBLIC if name in row}


def _short(value: object) -> object:
    return value[:DETAIL_CHARS] if isinstance(value, str) else value
