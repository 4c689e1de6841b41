"""Whether the disk takes what is recorded: the newest fault, told by the log and by `status`, not to the app alone.

What helps a device whose card fails? A restart does not mend a card: a service that ended at a failed write would only
start and fail again, and would deliver nothing meanwhile. So it goes on, reports the fault, answers systemd's watchdog,
and its check notices when writing works again. A write that never returns does need a restart and gets one: it blocks
the event loop, which then sends nothing to the watchdog.

The check is a commit, 16 KiB to the card with the file system's journal. It is made when nothing else has proved for
CHECK_S that writing works: once an hour, as each minute would write 23 MB a day on a device that rests. Until then a
card that fails shows in the first record; or at the next tick, which writes nothing, where the kernel reports that the
file system is read-only (since Linux 6.15 it does not for ext4 after an error). While a fault lasts the check is made
at each tick.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

from pisync_agent.errors import AgentError, OutboxFull
from pisync_agent.outbox.models import OutboxState
from pisync_common.limits import KIB
from pisync_common.systemd import notify

log = logging.getLogger(__name__)

CHECK_S: Final = 3600.0
LOG_EVERY_S: Final = 3600.0
ROOM_BYTES: Final = 128 * KIB
"""More than the largest event."""


class WriteFaults:
    """The outcome of commits, as they are noted. Not thread-safe."""

    def __init__(self, *, monotonic: Callable[[], float], now_ms: Callable[[], int]) -> None:
        self._monotonic = monotonic
        self._now_ms = now_ms
        self._worked_at = monotonic()
        self._fault: AgentError | None = None
        self._since_ms = 0
        self._count = 0
        self._logged: dict[str, float] = {}
        """When a fault of each code was logged."""
        self._was_logged = False
        """Whether this fault was logged."""

    def note(self, fault: AgentError | None) -> None:
        """Note a commit that failed, or that worked."""
        if fault is None:
            self._note_success()
        else:
            self._note_fault(fault)

    def note_check(self, *, has_room: bool) -> None:
        """Note a check that worked. It is smaller than an event, so it ends a full outbox only where there is room."""
        if has_room or not isinstance(self._fault, OutboxFull):
            self._note_success()

    def is_check_due(self, *, read_only: bool) -> bool:
        """Return whether a check should write: writing fails or must fail, or nothing was written for CHECK_S."""
        return read_only or self._fault is not None or self._monotonic() - self._worked_at >= CHECK_S

    def fields(self) -> dict[str, Any] | None:
        """Return the fault that lasts as the answer to a status request has it; None if writing works."""
        fault = self._fault
        if fault is None:
            return None
        return {
            "code": fault.code,
            "fault": fault.fault,
            "detail": str(fault),
            "since_ms": self._since_ms,
            "count": self._count,
        }

    def _note_success(self) -> None:
        self._worked_at = self._monotonic()
        if self._fault is not None:
            if self._was_logged:
                log.warning("recording works again, after %d failed commits", self._count)
            notify("STATUS=")
            self._fault, self._was_logged = None, False

    def _note_fault(self, fault: AgentError) -> None:
        now = self._monotonic()
        if self._fault is None:
            self._since_ms, self._count = self._now_ms(), 0
        self._fault = fault
        self._count += 1
        if now - self._logged.get(fault.code, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged[fault.code], self._was_logged = now, True
            log.error("recording fails (commits failed: %d): %s", self._count, fault)
            notify(f"STATUS=recording fails: {fault}")


def has_room(state: OutboxState) -> bool:
    """Return whether an event would fit: in free space, or in place of delivered events."""
    return state.kept_from <= state.delivered or state.bytes_max - state.bytes_used >= ROOM_BYTES
