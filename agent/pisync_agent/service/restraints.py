"""What holds sync runs back: the quiet hours, and a link that is metered."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

import pisync_agent.config as config
from pisync_agent.clock import Clock
from pisync_agent.network.metered import is_metered
from pisync_agent.service.schedule import Due
from pisync_common.quiet_hours import QuietHours
from pisync_common.settings import Settings

ASKED_S: Final = 900.0
"""How long an answer about the link holds while the link stays: its owner may change the setting."""


@dataclass(kw_only=True)
class Restraints:
    """By default there are none. `link_changed` may be called from any thread, `metered` from one."""

    quiet_hours: QuietHours | None = None
    clock: Clock | None = None
    """Needed with quiet hours."""
    ask_metered: Callable[[], bool] = lambda: False
    """Asked outside of locks; it may take seconds."""
    _metered: bool = False
    _asked_at: float | None = None
    _changed: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def from_settings(cls, settings: Settings, clock: Clock) -> Self:
        fixed = {config.METERED_YES: True, config.METERED_NO: False}.get(settings[config.METERED])
        return cls(
            quiet_hours=settings[config.QUIET_HOURS],
            clock=clock,
            ask_metered=is_metered if fixed is None else lambda: fixed,
        )

    def quiet(self) -> Due | None:
        """Return the end of the quiet hours, if it is quiet. A clock that is not synchronised cannot say."""
        if self.quiet_hours is None or self.clock is None:
            return None
        stamp = self.clock.stamp()
        left = self.quiet_hours.left_s(stamp.at_ms, None) if stamp.clock_synced else 0.0
        if left <= 0:
            return None
        return Due(at=self.clock.monotonic() + left, why=f"quiet hours until {self.quiet_hours.end:%H:%M}")

    def link_changed(self) -> None:
        """Ask again, when the next run is over, whether the link is metered."""
        self._changed.set()

    def metered(self, now: float) -> bool:
        """Return whether the link is metered."""
        if self._changed.is_set() or self._asked_at is None or now - self._asked_at >= ASKED_S:
            self._changed.clear()
            self._metered, self._asked_at = self.ask_metered(), now
        return self._metered
