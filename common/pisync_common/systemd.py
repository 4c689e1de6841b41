"""What a service and systemd have to do with each other: notices, the watchdog, and the socket that systemd holds."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

FIRST_PASSED: Final = 3
"""The first descriptor that systemd passes, SD_LISTEN_FDS_START of sd_listen_fds(3)."""


def notify(state: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send `READY=1`, `WATCHDOG=1`, `STATUS=…` without blocking; return whether it was delivered."""
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # A lost notice is repeated; a service that blocks here would be killed by its watchdog.
        sender.setblocking(False)
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())
        return True
    return False


def watchdog_interval(environ: Mapping[str, str] = os.environ, *, pid: int | None = None) -> float | None:
    """Return the seconds within which systemd expects `WATCHDOG=1` from this process; None without a watchdog."""
    owner = environ.get("WATCHDOG_PID", "")
    if owner and owner != str(os.getpid() if pid is None else pid):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None


def passed_listener(
    path: Path, environ: Mapping[str, str] = os.environ, *, pid: int | None = None, first: int = FIRST_PASSED
) -> socket.socket | None:
    """Return the socket at `path` on which systemd listens for this process, if it does: see sd_listen_fds(3).

    A socket at another path, as where the unit and the settings name two folders, is left alone.
    """
    number = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid() if pid is None else pid) or not number.isdecimal():
        return None
    for descriptor in range(first, first + int(number)):
        os.set_inheritable(descriptor, False)
        passed = socket.socket(fileno=descriptor)
        with suppress(OSError):
            if passed.family == socket.AF_UNIX and Path(os.fsdecode(passed.getsockname())).samefile(path):
                return passed
        passed.detach()
    return None
