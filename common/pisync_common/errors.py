"""The root of PiSync's exceptions.

PiSyncError
 ├── RuleError                   a value breaks a rule of the wire (also a ValueError)
 ├── NotDurable                  a database's commits would not survive a power cut
 ├── LockHeld                    another process is the writer of this file
 ├── SettingError                a setting's value is invalid (names the setting and its source)
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


class NotDurable(PiSyncError):
    """A database's commits would not survive a power cut."""

    code = "not_durable"


class LockHeld(PiSyncError):
    """Another process holds the writer's lock."""

    code = "locked"


class SettingError(PiSyncError, ValueError):
    """A setting has an invalid value."""

    code = "bad_setting"
