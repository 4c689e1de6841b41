"""The device's clocks. A Pi has none that survives a power cut, so every event says what it knew of the time.

`CLOCK_BOOTTIME` counts from this boot, suspended time included; it is right even when the wall clock is not.
"""

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from pisync_agent.adjtimex import kernel_synced as ask_kernel
from pisync_common.models import Stamp

BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")

_SYNCED_FOR_S: Final = 1.0


class Clock(Protocol):
    """What the agent asks of time."""

    def stamp(self) -> Stamp:
        """All clocks in one look."""

    def monotonic(self) -> float:
        """Seconds that never jump, for waiting."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970, right or wrong, for people to read."""


class SystemClock:
    """The real clocks of this machine. Thread-safe."""

    def __init__(self, *, boot_id_file: Path = BOOT_ID_FILE, kernel_synced: Callable[[], bool] | None = None) -> None:
        self._boot_id = read_boot_id(boot_id_file)
        self._ask_kernel = kernel_synced or ask_kernel()
        self._synced = False
        self._asked_at = -_SYNCED_FOR_S

    def stamp(self) -> Stamp:
        return Stamp(
            at_ms=self.wall_ms(),
            boot_id=self._boot_id,
            boottime_ms=time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
            clock_synced=self.synced(),
        )

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def synced(self) -> bool:
        """Whether the kernel calls the wall clock synchronised; asked at most once a second."""
        now = time.monotonic()
        if now - self._asked_at >= _SYNCED_FOR_S:
            self._synced, self._asked_at = self._ask_kernel(), now
        return self._synced


def read_boot_id(path: Path = BOOT_ID_FILE) -> str:
    """This boot's id; where the kernel tells none, a random one that lasts as long as the process."""
    try:
        return str(uuid.UUID(path.read_text("ascii").strip()))
    except (OSError, ValueError):
        return str(uuid.UUID(bytes=os.urandom(16), version=4))
