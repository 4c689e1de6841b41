"""Whether an outbox file is sound, as far as can be told in a few seconds and without writing to it."""

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pisync_agent.errors import AgentError
from pisync_agent.outbox import files
from pisync_agent.outbox.faults import explained, is_damage
from pisync_agent.outbox.reading import look, open_to_read
from pisync_common.sqlite import ERRORS, Connection

PROBLEMS: Final = 5
"""The most problems that are named."""
_STEPS: Final = 10_000
"""Steps of SQLite's machine before the clock is looked at again: milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Integrity:
    """What a check of the file found."""

    problems: tuple[str, ...] = ()
    complete: bool = True
    """Whether the whole file was read; a large file on a slow card takes longer than the time given."""


def check(home: Path, *, seconds: float, monotonic: Callable[[], float]) -> Integrity:
    """Check the outbox of `home` page by page, for `seconds` at most.

    Raises StoreUnusable or OutboxFull where it cannot be read for another reason than damage.
    """
    path = files.database(home)
    until = monotonic() + seconds
    with ExitStack() as stack:
        try:
            connection = open_to_read(path, look, stack)
            _limit(connection, lambda: monotonic() >= until)
            rows = connection.execute(f"PRAGMA quick_check({PROBLEMS:d})").fetchall()
        except (OSError, *ERRORS) as error:
            return _ended(path, error)
    found = [line for row in rows for line in str(row[0]).splitlines() if not line.startswith("***")]
    return Integrity(problems=() if found == ["ok"] else tuple(found[:PROBLEMS]))


def _limit(connection: Connection, is_over: Callable[[], bool]) -> None:
    """Have SQLite end a statement with "interrupted" when its time is over."""
    if isinstance(connection, sqlite3.Connection):
        connection.set_progress_handler(is_over, _STEPS)


def _ended(path: Path, error: Exception) -> Integrity:
    if isinstance(error, sqlite3.OperationalError) and str(error) == "interrupted":
        return Integrity(complete=False)
    if is_damage(error):
        return Integrity(problems=(str(error),))
    fault: AgentError = explained(path, error, reading=True)
    raise fault from error
