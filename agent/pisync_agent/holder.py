"""The writer's lock, taken for long, and who holds it where it cannot be had."""

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
"""A recorder holds the lock for a moment only."""

_LOCKS: Final = Path("/proc/locks")


@contextmanager
def writer_lock(path: Path, *, patience: float = PATIENCE_S) -> Iterator[None]:
    """Be the one writer inside the block. Raises LockHeld that names the process which is."""
    with files.errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(path)
    deadline = time.monotonic() + patience
    while not lock.held:
        try:
            with files.errors(path):
                lock.acquire(wait=False)
        except LockHeld as error:
            if time.monotonic() > deadline:
                raise LockHeld(
                    f"the outbox in {path.parent} is in use by {describe(path)}; nothing was changed. "
                    "One process at a time writes it: use the one that runs, or stop it first"
                ) from error
            time.sleep(0.02)
    try:
        yield
    finally:
        lock.release()


def describe(path: Path, *, locks: Path = _LOCKS, processes: Path = Path("/proc")) -> str:
    """Who holds the lock on `path`, as far as the kernel tells."""
    try:
        pid = _owner(path, locks.read_text())
        if pid is None:
            return "another process"
        words = (processes / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return "another process"
    command = " ".join(os.path.basename(word.decode(errors="replace")) for word in words if word)  # noqa: PTH119
    return f"process {pid} ({command})"


def _owner(path: Path, table: str) -> int | None:
    inode = path.stat().st_ino
    for line in table.splitlines():
        words = line.split()
        if len(words) >= 6 and words[1] == "FLOCK" and words[5].endswith(f":{inode}"):
            return int(words[4])
    return None
