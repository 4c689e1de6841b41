"""Looking at an outbox without writing: `pisync status` and `pisync queue` do it beside a running service."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pisync_agent.errors import StoreUnusable
from pisync_agent.outbox import files, ledger, pointers, space
from pisync_agent.outbox.connection import Connect, Connection, Error, connect
from pisync_agent.outbox.models import DeadLetter, EventState, OutboxState, Salvaged
from pisync_agent.outbox.pointers import Pointers
from pisync_agent.outbox.queries import queries
from pisync_agent.outbox.sound import number, text

T = TypeVar("T")


def look(connection: Connection, now: Pointers, bytes_max: int) -> OutboxState:
    """The state of an open outbox."""
    last = ledger.last_event(connection, now)[0]
    kept_from = ledger.first_held(connection, now)
    return OutboxState(
        stream=now.stream,
        last_seq=last,
        delivered=now.delivered,
        watermark=now.watermark,
        waiting=max(0, last - now.delivered),
        dead=_number(connection, "count_dead"),
        kept_from=kept_from,
        bytes_used=space.bytes_used(connection),
        bytes_max=bytes_max,
        salvaged=tuple(salvaged(connection)),
        reports_waiting=_number(connection, "count_reports"),
    )


def salvaged(connection: Connection) -> list[Salvaged]:
    """Files set aside, oldest first."""
    return [
        Salvaged(
            at_ms=number(row[0]), reason=text(row[1]), carried=number(row[2]), damaged=number(row[3]), file=text(row[4])
        )
        for row in connection.execute(queries()["salvaged"]).fetchall()
    ]


def list_events(connection: Connection, now: Pointers, after: int, limit: int) -> list[tuple[int, str, str]]:
    """(seq, text, state) of held events after `after`."""
    rows = connection.execute(queries()["events_after"], (after, limit)).fetchall()
    if not rows:
        return []
    found = connection.execute(queries()["dead_of_stream"], (now.stream, rows[0][0], rows[-1][0])).fetchall()
    dead = {row[0] for row in found}
    return [(number(seq), text(body), _state_of(seq, now, dead)) for seq, _, body in rows]


class OutboxReader:
    """A read-only look at the outbox of `home`; close it. Raises StoreUnusable if it cannot be read."""

    def __init__(self, home: Path, *, bytes_max: int = 0, connect: Connect = connect) -> None:
        self.path = files.database(home)
        self._bytes_max = bytes_max
        try:
            self._connection = connect(self.path, readonly=True)
        except Error as error:
            raise self._unusable(error) from error

    def state(self) -> OutboxState:
        return self._tried(lambda connection, now: look(connection, now, self._bytes_max))

    def dead(self) -> list[DeadLetter]:
        return self._tried(lambda connection, _: ledger.dead_letters(connection))

    def list_events(self, after: int, limit: int) -> list[tuple[int, str, str]]:
        """(seq, text, state) of held events after `after`."""
        return self._tried(lambda connection, now: list_events(connection, now, after, limit))

    def event(self, seq: int) -> str | None:
        """The text of a held event, or of a dead letter."""

        def find(connection: Connection, now: Pointers) -> str | None:
            letter = ledger.dead_letter(connection, now.stream, seq)
            return ledger.event(connection, seq) or (letter.body if letter else None)

        return self._tried(find)

    def note(self, name: str) -> str | None:
        row = self._tried(lambda connection, _: connection.execute(queries()["note"], (name,)).fetchone())
        return None if row is None else str(row[0])

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> "OutboxReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tried(self, ask: Callable[[Connection, Pointers], T]) -> T:
        try:
            return ask(self._connection, pointers.load(self._connection))
        except Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StoreUnusable:
        return StoreUnusable(
            f"{self.path} cannot be read ({error}). Start the service (`pisync run`): it salvages a broken file."
        )


def read_state(home: Path, *, bytes_max: int = 0, connect: Connect = connect) -> OutboxState | None:
    """The outbox's state; None if there is no outbox yet. Raises StoreUnusable if it cannot be read."""
    path = files.database(home)
    if not path.exists() or not path.stat().st_size:
        return None
    with OutboxReader(home, bytes_max=bytes_max, connect=connect) as reader:
        return reader.state()


def _state_of(seq: int, now: Pointers, dead: set[int]) -> EventState:
    if seq in dead:
        return EventState.DEAD
    return EventState.DELIVERED if seq <= now.delivered else EventState.WAITING


def _number(connection: Connection, query: str) -> int:
    return number(connection.execute(queries()[query]).fetchone()[0])
