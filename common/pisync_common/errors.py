"""The root of PiSync's exceptions.

PiSyncError
 ├── RuleError                   a value breaks a rule of the wire (also a ValueError)
 ├── LockHeld                    another process is the writer of this file
 ├── SettingError                a setting's value is not understood (names the setting and its source)
 ├── pisync_agent.errors.*       see there
 └── pisync_receiver.errors.*    see there
"""

from typing import ClassVar


class PiSyncError(Exception):
    """An error a user can act on. `code` is stable; `str()` says what happened and what to do."""

    code: ClassVar[str] = "error"


class RuleError(PiSyncError, ValueError):
    """A value breaks a rule of the wire (see `rules`)."""

    code = "invalid_event"


class LockHeld(PiSyncError):
    """Another process holds the writer's lock."""

    code = "locked"


class SettingError(PiSyncError, ValueError):
    """A setting has a value that cannot be used."""

    code = "bad_setting"
