"""The kernel's events about the files of one folder (inotify), which the standard library does not offer."""

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Final, Self

_ATTRIB: Final = 0x4
_CLOSE_WRITE: Final = 0x8
_MOVED_TO: Final = 0x80
_ONLYDIR: Final = 0x1000000
_BUFFER: Final = 65536


class FolderWatch:
    """Readable when a file was renamed into `folder`, closed after writing, or given other rights.

    Raises OSError where the kernel or the C library has none. Close it.
    """

    def __init__(self, folder: Path) -> None:
        try:
            library = ctypes.CDLL(None, use_errno=True)
            self._fd: int = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
            added: int = library.inotify_add_watch(
                self._fd, os.fsencode(folder), _ATTRIB | _CLOSE_WRITE | _MOVED_TO | _ONLYDIR
            )
        except AttributeError as error:
            raise OSError("the C library has no inotify") from error
        if min(self._fd, added) < 0:
            error_number = ctypes.get_errno()
            self.close()
            raise OSError(error_number, os.strerror(error_number), str(folder))

    def fileno(self) -> int:
        return self._fd

    def drain(self) -> None:
        """Discard the events received so far; the folder is read instead."""
        with contextlib.suppress(OSError):
            while os.read(self._fd, _BUFFER):
                pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
