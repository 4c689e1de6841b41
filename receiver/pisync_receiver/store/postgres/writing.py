"""Writing groups: one transaction each, tried again over a new connection while that can help, never carried out twice.

When the connection is lost before the commit was sent, the server has rolled the group back, or will. When it is lost
after that, the writer looks whether its mark of the group is there, since a sync event without a key could not be
recognised if it came again.
"""

import itertools
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import errors

from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.connection import LOST, Link, Links, reason
from pisync_receiver.store.postgres.tables import PostgresTables
from pisync_receiver.store.queries import queries
from pisync_receiver.store.types import Outcome, Submission
from pisync_receiver.store.writing import write_group

log = logging.getLogger(__name__)

_AGAIN = (*LOST, errors.SerializationFailure, errors.DeadlockDetected)
"""What another try may get past."""
_PAUSE_S = 0.1


class _CommitUnknown(Exception):
    """The connection was lost while the commit was under way."""

    def __init__(self, mark: tuple[str, int], outcomes: list[Outcome], error: Exception) -> None:
        super().__init__(mark)
        self.mark = mark
        self.error = error
        self.outcomes = outcomes


class Writer:
    """Writes groups over the connections of a pool; several at once, each with a name of its own."""

    def __init__(
        self,
        pool: Links,
        url: PostgresUrl,
        *,
        patience_s: float,
        timeout_ms: int,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._pool = pool
        self._url = url
        self._patience_s = patience_s
        self._timeout_ms = timeout_ms
        self._clock = clock
        self._sleep = sleep
        self._sql = queries("postgres", "intake")
        self._process = secrets.token_hex(8)
        self._numbers = itertools.count(1)
        self._free_names: deque[str] = deque()
        self._groups = itertools.count(1)

    def deadline(self) -> float:
        """Until when something that begins now may be tried again."""
        return self._clock() + self._patience_s

    def write(self, submissions: Sequence[Submission], until: float) -> list[Outcome]:
        """Store them all, or raise: StoreUnusable when the server cannot be had until then, the server's own error when
        it refused what one of them says; then none is stored."""
        if self._clock() > until:
            raise StoreUnusable(f"{self._url} cannot be written: others of the group took all the time there is")
        with self._name() as name:
            while True:
                try:
                    return self._try(submissions, (name, next(self._groups)))
                except _CommitUnknown as unknown:
                    if self._was_committed(unknown.mark, until):
                        return unknown.outcomes
                    self._try_again(unknown.error, until)
                except _AGAIN as error:
                    self._try_again(error, until)

    def beat(self) -> None:
        """Write something small, durably. Raises StoreUnusable."""
        until = self.deadline()
        while True:
            try:
                with self._pool.connection() as connection:
                    connection.execute(self._sql["beat"])
                return
            except _AGAIN as error:
                self._try_again(error, until)
            except psycopg.Error as error:
                raise StoreUnusable(f"{self._url} cannot be written: {reason(error)}") from error

    @contextmanager
    def _name(self) -> Iterator[str]:
        """Nobody else's until it is known what became of the group, because its mark is overwritten by the next; never
        again if that is not known, because a commit that is still under way keeps the mark locked."""
        try:
            name = self._free_names.pop()
        except IndexError:
            name = f"{self._process}-{next(self._numbers)}"
        known = True
        try:
            yield name
        except StoreUnusable:
            known = False
            raise
        finally:
            if known:
                self._free_names.append(name)

    def _try(self, submissions: Sequence[Submission], mark: tuple[str, int]) -> list[Outcome]:
        with self._pool.connection() as connection:
            tables = PostgresTables(connection, mark=mark, timeout_ms=self._timeout_ms)
            outcomes: list[Outcome] | None = None
            try:
                tables.begin(submissions)
                outcomes = write_group(tables, submissions)
                tables.commit()
            except BaseException as error:
                lost = _is_lost(connection, error)
                _roll_back(connection)
                if lost and outcomes is not None and isinstance(error, Exception):
                    raise _CommitUnknown(mark, outcomes, error) from error
                raise
            return outcomes

    def _was_committed(self, mark: tuple[str, int], until: float) -> bool:
        """Look until the server knows. Raises StoreUnusable where it does not answer in time."""
        while True:
            try:
                with self._pool.connection() as connection:
                    row = connection.execute(self._sql["is_marked"], mark).fetchone()
                return row is not None and bool(row[0])
            except errors.LockNotAvailable:
                problem: Exception = StoreUnusable("the last commit is still under way")
            except (psycopg.Error, *LOST) as error:
                problem = error
            self._try_again(problem, until)

    def _try_again(self, error: Exception, until: float) -> None:
        """Wait a moment before the next try. Raises StoreUnusable if there is no time for one."""
        if self._clock() + _PAUSE_S > until:
            raise StoreUnusable(f"{self._url} cannot be written: {reason(error)}") from error
        log.warning("the database did not take a group; trying again: %s", reason(error))
        self._sleep(_PAUSE_S)


def _is_lost(connection: Link, error: BaseException) -> bool:
    """Whether the server may have done what it was asked. What it refused, over a connection that lasts, it did not."""
    return connection.closed or (isinstance(error, LOST) and getattr(error, "sqlstate", None) is None)


def _roll_back(connection: Link) -> None:
    try:
        connection.execute("ROLLBACK")
    except psycopg.Error:
        connection.close()  # the server rolls back what a lost connection leaves
