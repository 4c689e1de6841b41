"""`pisync-receiver`: the commands, their flags and their help, in one table.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 not done or not found,
2 wrong usage.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pisync_common import command_line
from pisync_common.errors import PiSyncError, SettingError
from pisync_common.settings import Setting, add_flags
from pisync_receiver import commands, config
from pisync_receiver.commands import Context, WrongUsage
from pisync_receiver.reading import DEVICES, FAILURES, HISTORY
from pisync_receiver.reading import add_flags as add_query_flags
from pisync_receiver.worker.settings import WORKING

PROGRAM: Final = "pisync-receiver"
DONE, NOT_DONE, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

_DATABASE_ONLY: Final = (config.DATABASE,)


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command. `words` are what is typed; `run` gets the parsed command line and prints its result."""

    words: tuple[str, ...]
    about: str
    example: str
    run: Callable[[Context], None]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    settings: Sequence[Setting[Any]] = _DATABASE_ONLY


def _worker(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="do what there is to do now, then stop")
    parser.add_argument(
        "--from",
        dest="begin_from",
        metavar="ID",
        help="hand on again from this event on, whatever was handed on; 1 is the first, `now` skips all there is",
    )


def _token_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--role", required=True, choices=("admin", "viewer"), help="admin changes things, viewer reads")
    parser.add_argument("--replaces", metavar="ID", help="the token that this one takes over from")
    parser.add_argument(
        "--overlap", metavar="TIME", help="how long the replaced token goes on working (default: 24h; 0s ends it now)"
    )


def _token_revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the token's id, as `token list` shows it")


def _enrollment_create(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--uses", metavar="N", default="1", help="how many devices may use the code (default: 1)")
    parser.add_argument("--expires", metavar="TIME", default="7d", help="how long the code works (default: 7d)")
    parser.add_argument("--site", metavar="NAME", help="the school or place that its devices belong to")
    parser.add_argument(
        "--device-id", metavar="ID", help="the one device the code is for, also one that is enrolled already"
    )


def _history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", metavar="DEVICE", help="the device's id")
    _rows(parser, HISTORY)


def _rows(parser: argparse.ArgumentParser, path: str) -> None:
    add_query_flags(parser, path)
    parser.add_argument("--all", action="store_true", help="follow to the last page")
    _json(parser)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts: JSON")


def _copy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="source", required=True, metavar="URL", help="the SQLite database, sqlite:///…")
    parser.add_argument("--to", dest="target", required=True, metavar="URL", help="an empty one, postgresql://…")


def _backup(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the file to make; it must not exist yet")


COMMANDS: Final[tuple[Command, ...]] = (
    Command(
        words=("serve",),
        about="take what devices send, answer admins, until it is stopped",
        example="serve --port 8080 --database-url sqlite:////var/lib/pisync-receiver/receiver.db",
        run=commands.serve,
        settings=config.SERVING,
    ),
    Command(
        words=("worker",),
        about="hand stored events to a broker, and tell operators of devices that keep failing; needs PostgreSQL",
        example="worker --amqp-url amqp://rabbitmq.example/ --quiet-hours 22:00-06:00 --time-zone Africa/Nairobi",
        run=commands.worker,
        arguments=_worker,
        settings=(config.DATABASE, config.LOG_LEVEL, *WORKING),
    ),
    Command(
        words=("token", "create"),
        about="make a token for an admin or a viewer and print it, this once",
        example="token create --role viewer",
        run=commands.token_create,
        arguments=_token_create,
    ),
    Command(
        words=("token", "list"),
        about="show every token, without the secrets, which nobody keeps",
        example="token list --json",
        run=commands.token_list,
        arguments=_json,
    ),
    Command(
        words=("token", "revoke"),
        about="end a token at once",
        example="token revoke 12",
        run=commands.token_revoke,
        arguments=_token_revoke,
    ),
    Command(
        words=("enrollment", "create"),
        about="make a code for `pisync enroll` and print it, this once",
        example='enrollment create --uses 30 --expires 7d --site "Nakuru Primary"',
        run=commands.enrollment_create,
        arguments=_enrollment_create,
    ),
    Command(
        words=("devices",),
        about="list the devices and when each was last heard of",
        example="devices --silent-for 3d",
        run=commands.devices,
        arguments=lambda parser: _rows(parser, DEVICES),
    ),
    Command(
        words=("history",),
        about="show a device's sync events, newest first",
        example="history pibook-0042 --since 7d",
        run=commands.history,
        arguments=_history,
    ),
    Command(
        words=("failures",),
        about="list the devices that keep failing, worst first",
        example="failures --min-failures 5",
        run=commands.failures,
        arguments=lambda parser: _rows(parser, FAILURES),
    ),
    Command(
        words=("backup",),
        about="write a consistent copy of the database, also while it serves",
        example="backup /srv/backup/receiver-monday.db",
        run=commands.backup,
        arguments=_backup,
    ),
    Command(
        words=("copy",),
        about="move an embedded receiver to PostgreSQL; stop `serve` first, start it with the new URL afterwards",
        example="copy --from sqlite:////var/lib/pisync-receiver/receiver.db --to postgresql://pisync@db.example/pisync",
        run=commands.copy,
        arguments=_copy,
        settings=(),
    ),
    Command(
        words=("migrate",),
        about="bring the database's schema up to this program; back up first, stop `serve` first",
        example="migrate",
        run=commands.migrate,
    ),
    Command(
        words=("config",),
        about="show each setting, its value and where it came from, secrets masked",
        example="config --json",
        run=commands.show_config,
        arguments=_json,
        settings=config.SETTINGS,
    ),
)

_GROUPS: Final = {"token": "tokens of admins and viewers", "enrollment": "codes that devices enroll with"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    os.umask(0o077)  # everything it makes holds what learners did, or keys to it
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(Context(arguments=arguments, environ=os.environ, out=sys.stdout, err=sys.stderr))
        sys.stdout.flush()
        return DONE
    except (SettingError, WrongUsage) as error:
        return _failed(error, WRONG_USAGE)
    except PiSyncError as error:
        return _failed(error, NOT_DONE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python must not complain about it when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NOT_DONE
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
    command.arguments(parser)
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
