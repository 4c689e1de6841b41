"""The writer's lock, held for long, and which process holds it."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pisync_agent.outbox import files
from pisync_common.errors import LockHeld
from pisync_common.single_writer import WriterLock

PATIENCE_S: Final = 2.0
"""How long to wait for the lock: a recorder holds it only for a moment."""

_COMMAND_CHARS: Final = 80
_LOCKS: Final = Path("/proc/locks")


@contextmanager
def writer_lock(path: Path, *, patience: float = PATIENCE_S) -> Iterator[None]:
    """Be the one writer inside the block. Raises LockHeld that names the process that holds the lock."""
    with files.errors(path):
        files.make_folder(path.parent)
    lock = WriterLock(path)
    deadline = time.monotonic() + patience
    while not lock.held:
        try:
            with files.errors(path):
                lock.acquire(wait=False)
        except LockHeld as error:
            if time.monotonic() > deadline:
                holder = holder_of(path) or "another process"
                raise LockHeld(
                    f"the outbox in {path.parent} is in use by {holder}; nothing was changed. "
                    "Only one process at a time writes it: use the running process, or stop it first"
                ) from error
            time.sleep(0.02)
    try:
        yield
    finally:
        lock.release()


def holder_of(path: Path, *, locks: Path = _LOCKS, processes: Path = Path("/proc")) -> str | None:
    """Return which process holds the lock on `path`; None if none does, as far as the kernel tells."""
    try:
        pid = _holder(path, locks.read_text())
    except OSError:
        return None
    if pid is None:
        return None
    try:
        words = (processes / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"process {pid}"
    command = " ".join(os.path.basename(word.decode(errors="replace")) for word in words if word)  # noqa: PTH119
    return f"process {pid} ({' '.join(command.split())[:_COMMAND_CHARS]})"


def _holder(path: Path, table: str) -> int | None:
    inode = path.stat().st_ino
    for line in table.splitlines():
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
            return int(words[4])
    return None
