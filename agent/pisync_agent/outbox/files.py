"""The files of the outbox's folder, and the file system's faults as the agent's own errors."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

COMPANIONS: Final = ("-wal", "-shm", "-journal")

FOLDER_MODE: Final = 0o750
"""The group reaches the socket in it, where the umask allows a group anything."""
FILE_MODE: Final = 0o600
"""Whatever the umask: learners' events, and the lock that stops every writer, are the agent's user's alone."""

_OURS: Final = re.compile(r"outbox([.-].+)?|identity\.json")


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


def make_folder(home: Path) -> None:
    """Create the agent's folder if there is none. Raises OSError."""
    home.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)


def touch(path: Path) -> None:
    """Create the file for the agent's user alone."""
    with errors(path):
        if not path.exists():
            make_folder(path.parent)
            os.close(create(path))
            sync_folder(path.parent)


def create(path: Path) -> int:
    """Open a file for writing, creating it if there is none; return its descriptor. Raises OSError."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)


def tighten(home: Path) -> None:
    """Take the rights of others from files of this user that an earlier version, or a copy, left open to them.

    A file system without rights of its own (vfat) refuses that, and changes nothing.
    """
    with suppress(PermissionError), os.scandir(home) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                found = entry.stat(follow_symlinks=False)
                if found.st_mode & 0o7777 & ~FILE_MODE and found.st_uid == os.geteuid():
                    os.chmod(entry.path, FILE_MODE)  # noqa: PTH101 - the entry may have bytes that are not UTF-8


def lengthen(path: Path, size: int) -> None:
    """Write zeros from the end of a file to `size`, and flush them. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        present = os.fstat(fd).st_size
        os.pwrite(fd, bytes(max(0, size - present)), present)
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def random_hex(size: int) -> str:
    """Return `size` random bytes in hex. `secrets` would load OpenSSL into every command."""
    return os.urandom(size).hex()


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turn faults of the file system into StoreUnusable, or OutboxFull where there is no room."""
    try:
        yield
    except OSError as error:
        from pisync_agent.outbox.faults import explained  # loads SQLite, which the service's clients do not need

        raise explained(path, error) from error
