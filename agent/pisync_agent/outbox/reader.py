"""Reading an outbox without writing: `pisync status` and `pisync queue` do it beside a running service."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TypeVar

from pisync_agent.outbox import disk, event_rows, files, pointers
from pisync_agent.outbox.database import integer, queries, text
from pisync_agent.outbox.faults import explained
from pisync_agent.outbox.models import DeadLetter, EventState, OutboxState, Salvaged
from pisync_agent.outbox.pointers import Pointers
from pisync_agent.outbox.reading import look, open_to_read
from pisync_common.sqlite import ERRORS, Connect, Connection

T = TypeVar("T")


def read_state(connection: Connection, now: Pointers, bytes_max: int) -> OutboxState:
    """Return the state of an open outbox."""
    last = event_rows.last_event(connection, now)[0]
    return OutboxState(
        stream=now.stream,
        last_seq=last,
        delivered=now.delivered,
        watermark=now.watermark,
        waiting=max(0, last - now.delivered),
        dead=_count(connection, "count_dead_letters"),
        kept_from=event_rows.first_held(connection, now),
        bytes_used=disk.bytes_used(connection),
        bytes_max=bytes_max,
        salvaged=tuple(
            Salvaged(
                at_ms=integer(at_ms),
                reason=text(reason),
                transferred=integer(transferred),
                damaged=integer(damaged),
                file=text(file),
            )
            for at_ms, reason, transferred, damaged, file in connection.execute(queries()["salvaged"]).fetchall()
        ),
        sync_events_waiting=_count(connection, "count_sync_events"),
    )


class OutboxReader:
    """The outbox of `home` as it is when it is first read. Close it. Raises StoreUnusable if it cannot be read."""

    def __init__(self, home: Path, *, connect: Connect = look) -> None:
        self.path = files.database(home)
        self._open = ExitStack()
        try:
            self._connection = open_to_read(self.path, connect, self._open)
        except (OSError, *ERRORS) as error:
            self.close()
            raise explained(self.path, error, reading=True) from error
        except BaseException:
            self.close()
            raise

    def state(self) -> OutboxState:
        return self._read(lambda connection, now: read_state(connection, now, 0))

    def dead_letters(self, skip: int = 0, limit: int = -1) -> list[DeadLetter]:
        """Return dead letters, oldest first: all but the first `skip`, at most `limit` of them."""
        return self._read(lambda connection, _: event_rows.dead_letters(connection, skip, limit))

    def list_events(self, after: int, limit: int) -> list[tuple[int, str, str]]:
        """Return (seq, text, state) of held events after `after`; the state is an EventState."""

        def find(connection: Connection, now: Pointers) -> list[tuple[int, str, str]]:
            rows = connection.execute(queries()["events_after"], (after, limit)).fetchall()
            if not rows:
                return []
            between = (now.stream, rows[0][0], rows[-1][0])
            dead = {row[0] for row in connection.execute(queries()["dead_of_stream"], between)}
            return [(integer(seq), text(body), _state_of(seq, now, dead)) for seq, _, body in rows]

        return self._read(find)

    def event(self, seq: int) -> str | None:
        """Return the text of a held event, or of its dead letter."""
        return self._read(lambda connection, now: event_rows.event_or_dead_letter(connection, now.stream, seq))

    def note(self, name: str) -> str | None:
        row = self._read(lambda connection, _: connection.execute(queries()["note"], (name,)).fetchone())
        return None if row is None else str(row[0])

    def close(self) -> None:
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, ask: Callable[[Connection, Pointers], T]) -> T:
        try:
            return ask(self._connection, pointers.load(self._connection))
        except ERRORS as error:
            raise explained(self.path, error, reading=True) from error


def _state_of(seq: int, now: Pointers, dead: set[int]) -> EventState:
    if seq in dead:
        return EventState.DEAD
    return EventState.DELIVERED if seq <= now.delivered else EventState.WAITING


def _count(connection: Connection, query: str) -> int:
    return integer(connection.execute(queries()[query]).fetchone()[0])
