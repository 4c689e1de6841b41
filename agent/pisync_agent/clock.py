"""The device's clocks. A Pi's wall clock does not survive a power cut, so every event says what was known of the time.

`CLOCK_BOOTTIME` counts from this boot, suspended time included; it is right even when the wall clock is not.
"""

import ctypes
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from pisync_common.models import Stamp
from pisync_common.times import now_ms

RELEASED_MS: Final = 1_793_491_200_000
"""2026-11-01: this software did not exist before, so a clock that shows less is wrong."""

BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")

_BOOT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SYNCED_FOR_S: Final = 1.0
_TIME_ERROR: Final = 5
_STA_UNSYNC: Final = 0x0040


class Clock(Protocol):
    """What the agent asks of time."""

    def stamp(self) -> Stamp:
        """Return all clocks at one moment."""

    def monotonic(self) -> float:
        """Return seconds that never jump, for waiting."""


class SystemClock:
    """The real clocks of this machine. Thread-safe."""

    def __init__(self, *, boot_id_file: Path = BOOT_ID_FILE, kernel_synced: Callable[[], bool] | None = None) -> None:
        self._boot_id = read_boot_id(boot_id_file)
        self._kernel_synced = kernel_synced or kernel_sync_check()
        self._synced = False
        self._asked_at = -_SYNCED_FOR_S

    def stamp(self) -> Stamp:
        return Stamp(
            at_ms=now_ms(),
            boot_id=self._boot_id,
            boottime_ms=time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
            clock_synced=self.synced(),
        )

    def monotonic(self) -> float:
        return time.monotonic()

    def synced(self) -> bool:
        """Return whether the kernel considers the wall clock synchronised; asked at most once a second."""
        now = time.monotonic()
        if now - self._asked_at >= _SYNCED_FOR_S:
            self._synced, self._asked_at = self._kernel_synced(), now
        return self._synced


def read_boot_id(path: Path = BOOT_ID_FILE) -> str:
    """Return this boot's id; without one from the kernel, a random id that lasts as long as the process."""
    try:
        boot_id = path.read_text("ascii").strip().lower()
    except (OSError, ValueError):
        boot_id = ""
    return boot_id if _BOOT_ID.fullmatch(boot_id) else os.urandom(16).hex()


def kernel_sync_check() -> Callable[[], bool]:
    """Return a call that asks the kernel (`adjtimex`) whether the wall clock is synchronised.

    It says "not synchronised" where the C library cannot ask.
    """
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return lambda: False

    def synced() -> bool:
        timex = _Timex()  # modes 0: read only
        state = adjtimex(ctypes.byref(timex))
        return 0 <= state < _TIME_ERROR and not timex.status & _STA_UNSYNC

    return synced


class _Timex(ctypes.Structure):
    """`struct timex` up to its `status`; the rest is room for what the kernel fills in."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("_rest", ctypes.c_byte * 256),
    )
