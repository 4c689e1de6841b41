"""The outbox's files, and how one database takes the place of another without a moment at which events can be lost.

A swap: the new database is built whole as `outbox.new.db` and flushed; then, each step made durable before the next,
1. `outbox.db` is renamed to its set-aside name: from here on the new one counts;
2. its `-wal` and `-shm` follow (SQLite would take a log that stayed behind for the new database's own);
3. `outbox.new.db` is renamed to `outbox.db`.
An interruption before 1 leaves the old database in force, and the new one is thrown away, for nothing was
recorded in it yet. One after 1 is finished at the next opening.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pisync_agent.errors import OutboxFull, StoreUnusable
from pisync_agent.outbox.connection import Connection, Error
from pisync_common.times import format_ms

COMPANIONS: Final = ("-wal", "-shm", "-journal")

_FULL_ERRNOS: Final = (28, 122)  # ENOSPC, EDQUOT


def database(home: Path) -> Path:
    return home / "outbox.db"


def lock(home: Path) -> Path:
    """Whoever writes the outbox holds this file's lock."""
    return home / "outbox.lock"


def reserve(home: Path) -> Path:
    return home / "outbox.reserve"


def socket(home: Path) -> Path:
    """Where the service listens."""
    return home / "agent.sock"


def new(path: Path) -> Path:
    """Where the database that will take the place of `path` is built."""
    return path.with_name("outbox.new.db")


def aside(path: Path, *, at_ms: int, stream: str, broken: bool) -> Path:
    """A free name for `path` to be set aside under."""
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


def companion(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def touch(path: Path) -> None:
    """Make the file with the rights it shall have: the agent's user and group (the umask has the last word)."""
    with errors(path):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660))
            sync_folder(path.parent)


def swap(path: Path, target: Path) -> None:
    """Put `outbox.new.db` in the place of `path`, which is kept as `target`."""
    sync_file(new(path))
    sync_folder(path.parent)
    if path.exists():
        os.rename(path, target)  # noqa: PTH104 - fails where Path.rename would, and says which
        sync_folder(path.parent)
    _finish(path, target)


def finish_swap(path: Path) -> None:
    """Finish an interrupted swap, or undo one that had not begun to count."""
    if not new(path).exists():
        return
    if path.exists():
        discard_new(path)
        return
    _finish(path, _newest_aside(path))


def discard_new(path: Path) -> None:
    for ending in ("", *COMPANIONS):
        companion(new(path), ending).unlink(missing_ok=True)


def identity(path: Path) -> tuple[int, int]:
    """Which file it is, whatever its name. Raises OSError."""
    found = path.stat()
    return found.st_dev, found.st_ino


def sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def close(connection: Connection) -> None:
    """Close a connection whose file may be broken or gone."""
    with suppress(*Error):
        connection.close()


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Faults of the file system as the agent's own: StoreUnusable, or OutboxFull where there is no room."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_ERRNOS:
            raise OutboxFull(
                f"there is no room on the disk of {path.parent} ({error}): nothing was recorded, and all that was "
                "recorded before is kept. Free some space, then try again."
            ) from error
        raise StoreUnusable(
            f"{path} cannot be used ({error}): nothing was recorded, nothing is lost. "
            "Check the disk and who may write there, then try again."
        ) from error


def _finish(path: Path, target: Path) -> None:
    for ending in COMPANIONS:
        left = companion(path, ending)
        if left.exists():
            left.rename(companion(target, ending))
    sync_folder(path.parent)
    new(path).rename(path)
    sync_folder(path.parent)


def _newest_aside(path: Path) -> Path:
    """What the interrupted swap renamed `path` to: the file that was renamed last."""
    found = [*path.parent.glob("outbox-*.broken.db"), *path.parent.glob("outbox-*.superseded.db")]
    default = path.with_name("outbox-unknown.broken.db")
    return max(found, key=lambda file: file.stat().st_ctime_ns, default=default)
