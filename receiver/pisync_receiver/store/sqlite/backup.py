"""A consistent copy of the database, also while another process writes it."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from pisync_receiver.errors import StoreUnusable
from pisync_receiver.store.sqlite.store import connect, unusable


def backup(path: Path, target: Path) -> None:
    """Copy the database at `path` to `target`, whole or not at all; what stood there is replaced.

    Readable by its owner alone. Raises StoreUnusable if it cannot be read or written.
    """
    if not path.exists():
        raise StoreUnusable(f"there is no database {path}")
    if target.exists() and target.samefile(path):
        raise StoreUnusable(f"{target} is the database itself; name another file")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with unusable(path, "copied"):
            _copy(path, partial)
        _flush(partial)
        partial.replace(target)
        _flush(target.parent)
    except OSError as error:
        raise StoreUnusable(f"{target} cannot be written: {error.strerror}") from error
    finally:
        partial.unlink(missing_ok=True)


def _copy(path: Path, partial: Path) -> None:
    """In one step, so that all of it is of one moment; a writer goes on meanwhile. Raises StoreUnusable for a damaged
    database, whose copy would be no better."""
    partial.unlink(missing_ok=True)
    with closing(connect(path, readonly=True)) as source, closing(connect(partial, readonly=False)) as copy:
        assert isinstance(source, sqlite3.Connection)
        assert isinstance(copy, sqlite3.Connection)
        source.backup(copy)
        found = [text for (text,) in copy.execute("PRAGMA quick_check(1)").fetchall()]
        if found != ["ok"]:
            raise StoreUnusable(f"{path} is damaged, so it was not copied: {found[0]}; older copies were kept")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
