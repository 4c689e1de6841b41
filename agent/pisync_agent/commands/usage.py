"""What commands share: exit codes, wrong usage, the settings of a call."""

import argparse
import contextlib
import os
from pathlib import Path
from typing import Final

import pisync_agent.config as config
from pisync_agent.errors import DeliveryError, NotEnrolled, Refused, Unreachable
from pisync_common.errors import PiSyncError, RuleError, SettingError
from pisync_common.limits import SEQ_MAX
from pisync_common.settings import Settings

DONE, PENDING, WRONG_USAGE, UNREACHABLE, REFUSED, UNUSABLE = range(6)

EXIT_CODES: Final = (
    "exit codes: 0 done, nothing pending; 1 something pending or rejected, or the\n"
    "output cannot be written; 2 wrong usage; 3 receiver unreachable; 4 not enrolled,\n"
    "or the receiver refused the device; 5 the local store is unusable"
)


class WrongUsage(PiSyncError):
    """The command line cannot be carried out."""

    code = "wrong_usage"


class StillPending(PiSyncError):
    """Something was not delivered, and would be lost."""

    code = "still_pending"


class Unfinished(PiSyncError):
    """Lines cannot be read, or their numbers not printed; the text says what is stored."""

    code = "unfinished"


def exit_code(error: PiSyncError) -> int:
    """Return the exit code of a command that ended with `error`."""
    match error:
        case SettingError() | WrongUsage() | RuleError():
            return WRONG_USAGE
        case NotEnrolled() | Refused():
            return REFUSED
        case Unreachable():
            return UNREACHABLE
        case DeliveryError() | Unfinished() | StillPending():
            return PENDING
        case _:
            return UNUSABLE


def whole_number(name: str, value: str) -> int:
    """Return the number given for an argument. Raises WrongUsage."""
    if not (value.isascii() and value.isdigit() and len(value) < 20) or not int(value) <= SEQ_MAX:
        raise WrongUsage(f"{name} must be a whole number, such as 17; got {value[:40]!r}")
    return int(value)


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return the settings of this call. From here on the process runs as the agent's user."""
    settings = config.settings_from(arguments)
    become_owner(settings[config.HOME])
    return settings


def become_owner(home: Path) -> None:
    """Continue as the owner of `home` if root calls: files owned by root there would lock out the agent's service."""
    with contextlib.suppress(OSError):
        owner = home.stat()
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.setgroups([])
            os.setgid(owner.st_gid)
            os.setuid(owner.st_uid)
