"""Replacing one database by another without a moment at which events can be lost.

The new database is built whole as `outbox.new.db` and flushed (by its checkpoint, see `salvage`); then, each step made
durable before the next,
1. `outbox.db` is renamed to the name it is set aside under: from here on the new database counts;
2. its `-wal` and `-shm` follow (SQLite would take a log that stayed behind for the new database's own);
3. `outbox.new.db` is renamed to `outbox.db`.
An interruption before step 1 leaves the old database in force, and the new one is deleted, for nothing was recorded
in it yet. An interruption after step 1 is finished at the next opening.
"""

import os
import re
from pathlib import Path

from pisync_agent.outbox.files import COMPANIONS, companion, sync_folder
from pisync_common.times import format_ms


def new_path(path: Path) -> Path:
    """Return where the database that will replace `path` is built."""
    return path.with_name("outbox.new.db")


def aside_path(path: Path, *, at_ms: int, stream: str, broken: bool) -> Path:
    """Return a free name for `path` to be set aside under."""
    try:
        stamp = re.sub(r"[^0-9TZ]", "", format_ms(at_ms))
    except OverflowError:  # a clock beyond year 9999
        stamp = str(at_ms)
    kind = "broken" if broken else "superseded"
    name = f"outbox-{stamp}-{re.sub(r'[^A-Za-z0-9._-]', '', stream) or 'unknown'}"
    target = path.with_name(f"{name}.{kind}.db")
    number = 1
    while target.exists() or target.is_symlink():
        number += 1
        target = path.with_name(f"{name}-{number}.{kind}.db")
    return target


def swap(path: Path, target: Path) -> None:
    """Put `outbox.new.db` in the place of `path`, which is kept as `target`."""
    sync_folder(path.parent)
    if path.exists():
        os.rename(path, target)  # noqa: PTH104 - fails where Path.rename would, and says which
        sync_folder(path.parent)
    _finish(path, target)


def finish_swap(path: Path) -> None:
    """Finish an interrupted swap, or undo it if the old database is still in force."""
    if not new_path(path).exists():
        return
    if path.exists():
        discard_new(path)
        return
    _finish(path, _newest_aside(path))


def discard_new(path: Path) -> None:
    """Delete a new database that never came into force."""
    for ending in ("", *COMPANIONS):
        companion(new_path(path), ending).unlink(missing_ok=True)


def _finish(path: Path, target: Path) -> None:
    for ending in COMPANIONS:
        left = companion(path, ending)
        if left.exists():
            left.rename(companion(target, ending))
    sync_folder(path.parent)
    new_path(path).rename(path)
    sync_folder(path.parent)


def _newest_aside(path: Path) -> Path:
    """Return the name that the interrupted swap gave `path`: the file that was renamed last."""
    found = [*path.parent.glob("outbox-*.broken.db"), *path.parent.glob("outbox-*.superseded.db")]
    default = path.with_name("outbox-unknown.broken.db")
    return max(found, key=lambda file: file.stat().st_ctime_ns, default=default)
