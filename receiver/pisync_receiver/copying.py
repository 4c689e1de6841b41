"""`pisync-receiver copy`: an embedded receiver moves to PostgreSQL, with everything it knows.

The SQLite file is only read, under its writer's lock, so that nothing is added meanwhile. PostgreSQL gets everything in
one transaction, which is committed when every row of every table was read back and found the same: an interrupted copy
has changed nothing and can be started again, and a copy that was made before is recognised.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TextIO

from pisync_receiver import databases
from pisync_receiver.errors import ReceiverError
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.moving import TABLES, Moved
from pisync_receiver.store.sqlite import moving as sqlite


class CopyRefused(ReceiverError):
    """Nothing was copied."""

    code = "copy_refused"


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What was done: rows by table, and whether they had to be copied or were there already."""

    rows: dict[str, int]
    anew: bool


class Progress(Protocol):
    """Hears what is going on."""

    def __call__(self, doing: str, table: str, done: int, of: int) -> None: ...


def copy(source: Path, target: PostgresUrl, *, now_ms: Callable[[], int], progress: Progress) -> Copied:
    """Copy everything, or find that it was copied before.

    Raises CopyRefused where the target has data of its own or what was read back differs, LockHeld while a receiver
    serves the source, StoreUnusable; then nothing was changed.
    """
    from pisync_receiver.store.postgres import moving as postgres

    with (
        databases.writing(source, "pisync-receiver copy"),
        sqlite.source(source) as given,
        postgres.target(target, now_ms=now_ms()) as taken,
    ):
        counts = {moved.table: given.count(moved) for moved in TABLES}
        anew = not any(taken.count(moved) for moved in TABLES)
        if anew:
            for month in given.months():
                taken.make_month(month)
            for moved in TABLES:
                taken.fill(moved, given.rows(moved), _of(progress, "copying", moved, counts))
            taken.set_counters()
        for moved in TABLES:
            progress("comparing", moved.table, 0, counts[moved.table])
            differs = postgres.first_difference(given.rows(moved), taken.rows(moved))
            if differs is not None:
                raise CopyRefused(_refusal(target, moved, differs, anew=anew))
    return Copied(rows=counts, anew=anew)


def shown_on(stream: TextIO) -> Progress:
    """Progress for a person: one line that changes on a terminal, else a line for each table."""
    terminal = stream.isatty()

    def show(doing: str, table: str, done: int, of: int) -> None:
        if terminal:
            print(f"\r\x1b[K{doing} {table}: {done:,} of {of:,}", end="", file=stream, flush=True)
            if doing == "comparing" and table == TABLES[-1].table:
                print(file=stream)
        elif done == 0:
            print(f"{doing} {table}: {of:,} rows", file=stream, flush=True)

    return show


def _of(progress: Progress, doing: str, moved: Moved, counts: dict[str, int]) -> Callable[[int], None]:
    progress(doing, moved.table, 0, counts[moved.table])
    return lambda done: progress(doing, moved.table, done, counts[moved.table])


def _refusal(target: PostgresUrl, moved: Moved, number: int, *, anew: bool) -> str:
    if anew:
        return (
            f"row {number:,} of {moved.table}, read back, is not what was copied; nothing was stored in {target}. "
            "Check the disks of both machines, then try again"
        )
    return (
        f"{target} has data of its own ({moved.table} differs from row {number:,} on), so nothing was changed. "
        "A receiver may have served it since it was copied; otherwise name an empty database"
    )
