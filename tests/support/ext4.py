"""A real disk whose power can be cut: ext4 on a loop device, and the kernel's own way of shutting a file system down.

with ext4_disk(tmp_path) as disk:
    ...real processes work below disk.path...
    disk.cut_power()  # nothing that was not flushed reaches the disk any more; further writes fail with EIO
    ...end those processes...
    disk.restart()    # the same path, with what the disk held: the journal is replayed

What was written and not flushed lives in the kernel's memory alone. So that none of that memory can help, `restart`
mounts a copy of the image, on another loop device. Only the cache inside a disk is not simulated: what has left the
kernel counts as stored.

Only what a process said while the disk was `powered` was said before the cut. A process still alive for a moment may
say more, and it may be wrong: an fdatasync that had begun answers 0 although the shutdown came before the file's new
blocks counted (measured: one cut of twenty). Without power there is no such process.
"""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.services import installed, missing, root

SIZE: Final = 64 * 1024 * 1024

_SHUTDOWN: Final = 0x8004587D  # EXT4_IOC_SHUTDOWN
_NOLOGFLUSH: Final = 2  # the journal is not flushed first

_MKFS: Final = ("mkfs.ext4", "-q", "-b", "4096", "-E", "lazy_itable_init=0,nodiscard")
# The kernel would write the journal every 5 s; with this, only what a program flushes is there.
_OPTIONS: Final = "loop,commit=600"


class Ext4Disk:
    """Mounted at `path`; `image` is what the disk holds. See the module."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "disk"
        self.image = folder / "image-0"
        self.powered = True
        self._restarts = 0

    def bytes_written(self) -> int:
        """Return what the disk was given to write so far, as the kernel counts it: blocks of files, journal, tables."""
        device = self.path.stat().st_dev
        counted = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
        return int(counted[6]) * 512

    def cut_power(self) -> None:
        """From now on nothing reaches the disk."""
        self.powered = False
        root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(root, _SHUTDOWN, struct.pack("I", _NOLOGFLUSH))
        finally:
            os.close(root)

    def restart(self) -> None:
        """Mount what the disk holds. Every process that used it before has ended."""
        self.unmount()
        self._restarts += 1
        before, self.image = self.image, self.image.with_name(f"image-{self._restarts}")
        subprocess.run(["cp", "--sparse=always", str(before), str(self.image)], check=True)
        before.unlink()
        done = self.mount()
        assert done.returncode == 0, f"the disk cannot be mounted again: {done.stderr}"
        self.powered = True

    def mount(self) -> "subprocess.CompletedProcess[str]":
        command = ["mount", "-t", "ext4", "-o", _OPTIONS, str(self.image), str(self.path)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def unmount(self) -> None:
        """The loop device goes with the mount; at once, or with the last process that has a file open there."""
        while self.path.is_mount():
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)


@contextmanager
def ext4_disk(folder: Path) -> Iterator[Ext4Disk]:
    """An empty disk, made in `folder`."""
    root("mounting")
    installed(_MKFS[0])
    disk = Ext4Disk(folder)
    disk.path.mkdir()
    with disk.image.open("wb") as image:
        image.truncate(SIZE)
    subprocess.run([*_MKFS, str(disk.image)], check=True)
    try:
        done = disk.mount()
        if done.returncode != 0:
            missing(f"mounting ext4 on a loop device is not allowed here: {done.stderr.strip()}")
        yield disk
    finally:
        disk.unmount()
