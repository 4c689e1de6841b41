"""How much room a file system has. Apart from `disk`, because `pisync status` asks without loading SQLite."""

import os
from pathlib import Path
from typing import Final

UNKNOWN_BYTES: Final = 2**40
"""Stands for a file system that counts no blocks, as some in user space and over networks do: only writing tells."""


def free_bytes(folder: Path) -> int:
    """Return the bytes that this user may still write beside the outbox; UNKNOWN_BYTES if the file system cannot tell.

    A file system that counts more free blocks than blocks has reserved more than there are: the count went below 0.
    """
    disk = os.statvfs(folder)
    return min(disk.f_bavail, disk.f_bfree, disk.f_blocks) * _block_size(disk) if _is_counted(disk) else UNKNOWN_BYTES


def total_bytes(folder: Path) -> int:
    """Return the size of the file system; UNKNOWN_BYTES if it cannot tell."""
    disk = os.statvfs(folder)
    return disk.f_blocks * _block_size(disk) if _is_counted(disk) else UNKNOWN_BYTES


def is_read_only(folder: Path) -> bool:
    """Return whether the file system takes no writes; False where it cannot tell."""
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _is_counted(disk: os.statvfs_result) -> bool:
    return disk.f_blocks > 0 and _block_size(disk) > 0


def _block_size(disk: os.statvfs_result) -> int:
    return disk.f_frsize or disk.f_bsize
