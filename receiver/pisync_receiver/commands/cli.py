"""`pisync-receiver`: the commands in one table, and how a call of one ends.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 not done, not found, or the
output cannot be written, 2 wrong usage.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

from pisync_common import command_line
from pisync_common.errors import PiSyncError, SettingError
from pisync_common.settings import add_flags
from pisync_common.streams import INTERRUPTED
from pisync_receiver import config
from pisync_receiver.commands import administering, auditing, device_acts, fleet, learners, operating
from pisync_receiver.commands.context import Command, Context
from pisync_receiver.errors import WrongUsage

PROGRAM: Final = "pisync-receiver"
DONE, NOT_DONE, WRONG_USAGE = range(3)

COMMANDS: Final[tuple[Command, ...]] = (
    operating.serve,
    operating.worker,
    administering.token_create,
    administering.token_list,
    administering.token_revoke,
    administering.token_rotate,
    administering.enrollment_create,
    administering.enrollment_list,
    administering.enrollment_end,
    fleet.overview,
    fleet.sites,
    fleet.site_show,
    fleet.site_set_silent_after,
    fleet.incomplete,
    administering.devices,
    administering.device_show,
    administering.device_move,
    administering.device_rename,
    administering.device_retire,
    device_acts.device_sync,
    device_acts.device_revoke,
    device_acts.device_note,
    device_acts.device_notes,
    device_acts.device_conflicts,
    device_acts.device_rejected,
    device_acts.device_sites,
    device_acts.site_note,
    device_acts.site_notes,
    device_acts.suspicious,
    administering.history,
    administering.failures,
    administering.completeness,
    administering.events,
    learners.learner_events,
    learners.learner_export,
    learners.learner_erase,
    administering.transitions,
    administering.notices,
    auditing.audit_list,
    auditing.audit_verify,
    administering.causes,
    administering.runs,
    administering.speeds,
    administering.activity,
    operating.retain,
    operating.backup,
    operating.copy,
    operating.migrate,
    operating.show_config,
)

_GROUPS: Final = {
    "token": "tokens of admins, viewers and others",
    "enrollment": "codes that devices enroll with",
    "device": "one device",
    "learner": "one learner",
    "site": "one site",
    "audit": "who did what",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    os.umask(0o077)  # everything it makes holds what learners did, or keys to it
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(Context(arguments=arguments, environ=os.environ, out=sys.stdout, err=sys.stderr))
        return DONE
    except (SettingError, WrongUsage) as error:
        return _failed(error, WRONG_USAGE)
    except PiSyncError as error:
        return _failed(error, NOT_DONE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        return _failed(f"{error.filename or 'the system'}: {error.strerror or error}; nothing was changed", NOT_DONE)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line, from `COMMANDS`."""
    return command_line.build(
        PROGRAM,
        COMMANDS,
        _GROUPS,
        _add_command,
        description="PiSync's receiver: stores what devices send before it answers, and answers about them.",
        epilog=f"example:\n  {PROGRAM} serve\n\n{PROGRAM} COMMAND --help shows each command's flags and an example.",
    )


def _add_command(where: Any, command: Command) -> None:
    epilog = f"example:\n  {PROGRAM} {command.example}"
    parser = command_line.add_parser(where, command.words[-1], command.about, epilog=epilog)
    for names, how in command.arguments:
        parser.add_argument(*names, **how)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"a TOML file of settings (default: {config.SYSTEM_FILE} if it is there; {config.PREFIX}CONFIG)",
    )
    add_flags(parser, command.settings, prefix=config.PREFIX)
    parser.set_defaults(run=command.run)


def _failed(error: PiSyncError | str, code: int) -> int:
    print(f"{PROGRAM}: {error}", file=sys.stderr)
    return code
