"""A small file system of its own, where root may mount one: for what happens on a full disk."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.services import missing, root


@contextmanager
def small_disk(folder: Path, *, size: int, kinds: Sequence[str] = ("ext4", "tmpfs")) -> Iterator[Path]:
    """Mount a file system of `size` bytes at `folder`/disk: the first of `kinds` that is available here.

    ext4 is in a file and needs a loop device.
    """
    root("mounting")
    place = folder / "disk"
    place.mkdir(parents=True)
    for kind in kinds:
        done = _mount_ext4(folder / "image", place, size) if kind == "ext4" else _mount_tmpfs(place, size)
        if done.returncode == 0:
            break
    else:
        missing(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def read_only_view(folder: Path, place: Path) -> Iterator[Path]:
    """`folder` as a reader sees it while its file system is read-only; others still write it. Needs root."""
    place.mkdir()
    subprocess.run(["mount", "--bind", str(folder), str(place)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def use_up(disk: Path) -> Path:
    """Fill the disk to the last byte, as another program would; the file that does it."""
    file = disk / "others"
    with file.open("ab", buffering=0) as stream:
        for size in (65536, 4096, 512, 1):
            try:
                while True:
                    stream.write(b"x" * size)
            except OSError:
                continue
    return file


def _mount_ext4(image: Path, place: Path, size: int) -> "subprocess.CompletedProcess[str]":
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image)], check=True)
    return _mount("-o", "loop", str(image), str(place))


def _mount_tmpfs(place: Path, size: int) -> "subprocess.CompletedProcess[str]":
    return _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(place))


def _mount(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
