"""`pisync` with a clock that a test sets: a program like `python -m pisync_agent`.

PISYNC_TEST_CLOCK names a file with JSON: `ahead_ms`, what the wall clock is ahead of the true time (behind, if
negative); `boot_id`; and `clock_synced`.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Final

import pisync_agent.clock as clock
from pisync_common.models import Stamp

VARIABLE: Final = "PISYNC_TEST_CLOCK"


class SetClock(clock.SystemClock):
    """This machine's clock, changed as the file says at each moment."""

    def stamp(self) -> Stamp:
        true, change = super().stamp(), json.loads(Path(os.environ[VARIABLE]).read_text())
        return dataclasses.replace(
            true,
            at_ms=max(0, true.at_ms + change["ahead_ms"]),
            boot_id=change["boot_id"],
            clock_synced=change["clock_synced"],
        )


if __name__ == "__main__":
    clock.SystemClock = SetClock  # type: ignore[misc] # before any module takes it from there

    from pisync_agent.__main__ import main

    sys.exit(main())
