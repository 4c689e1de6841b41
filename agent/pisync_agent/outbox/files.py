"""The files of the outbox's folder, and the file system's faults as the agent's own errors."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pisync_agent.errors import OutboxFull, StoreUnusable

COMPANIONS: Final = ("-wal", "-shm", "-journal")

_FULL_ERRNOS: Final = (28, 122)  # ENOSPC, EDQUOT


def database(home: Path) -> Path:
    return home / "outbox.db"


def lock(home: Path) -> Path:
    """Return the file whose lock the outbox's writer holds."""
    return home / "outbox.lock"


def reserve(home: Path) -> Path:
    return home / "outbox.reserve"


def socket(home: Path) -> Path:
    """Return where the service listens."""
    return home / "agent.sock"


def companion(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def identity(path: Path) -> tuple[int, int]:
    """Return which file it is, whatever its name. Raises OSError."""
    found = path.stat()
    return found.st_dev, found.st_ino


def touch(path: Path) -> None:
    """Create the file for the agent's user and group (the umask has the last word)."""
    with errors(path):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660))
            sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    _sync(path, os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk."""
    _sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def random_hex(size: int) -> str:
    """Return `size` random bytes in hex. `secrets` would load OpenSSL into every command."""
    return os.urandom(size).hex()


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turn faults of the file system into StoreUnusable, or OutboxFull where there is no room."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_ERRNOS:
            raise OutboxFull(
                f"the disk of {path.parent} is full ({error}): nothing was recorded, and everything recorded before "
                "is kept. Free some space, then try again."
            ) from error
        raise unusable(path, error) from error


def unusable(path: Path, error: Exception) -> StoreUnusable:
    """Return the error for a file that cannot be opened, read or written."""
    return StoreUnusable(
        f"{path} cannot be used ({error}): nothing was recorded, nothing is lost. "
        "Check the disk and who may write there, then try again."
    )


def _sync(path: Path, flags: int) -> None:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
