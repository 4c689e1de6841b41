"""Numbered migrations: files that are applied once each, in order, and never altered.

A database keeps the number, name and checksum of each. A program works only on exactly the schema that it knows.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pisync_receiver.errors import SchemaMismatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """One file, `0001_initial.sql` say."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def load(folder: Path) -> tuple[Migration, ...]:
    """The migrations of a folder in order. Raises SchemaMismatch unless they count from 1 without a gap."""
    found = sorted(folder.glob("[0-9][0-9][0-9][0-9]_*.sql"))
    migrations = tuple(
        Migration(number=int(file.name[:4]), name=file.stem[5:], sql=file.read_text("utf-8")) for file in found
    )
    if [migration.number for migration in migrations] != list(range(1, len(migrations) + 1)):
        raise SchemaMismatch(f"{folder}: migrations must count from 0001 without a gap or a repeat; reinstall PiSync")
    return migrations


Applied = tuple[int, str, str]
"""Number, name and checksum of a migration, as a database keeps them."""


def check(database: str, applied: Sequence[Applied], wanted: Sequence[Migration]) -> None:
    """Raise SchemaMismatch unless the database has exactly the schema this program knows."""
    if pending(database, applied, wanted):
        raise SchemaMismatch(
            f"{database} has schema {len(applied)}, this program needs {len(wanted)}; "
            "make a backup and run: pisync-receiver migrate"
        )


def pending(database: str, applied: Sequence[Applied], wanted: Sequence[Migration]) -> list[Migration]:
    """What of `wanted` is not applied yet.

    Raises SchemaMismatch for a database that is newer or was made by another build.
    """
    if len(applied) > len(wanted):
        raise SchemaMismatch(
            f"{database} has schema {len(applied)}, newer than this program, which knows {len(wanted)}; "
            "install the newer PiSync again. Nothing was changed."
        )
    for (number, name, checksum), migration in zip(applied, wanted, strict=False):
        if (number, checksum) != (migration.number, migration.checksum):
            raise SchemaMismatch(
                f"{database}: migration {number} ({name}) is not the one this program has ({migration.name}); "
                "the database was made by another build. Nothing was changed."
            )
    return list(wanted[len(applied) :])
