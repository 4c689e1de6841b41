"""`pisync`: the commands, their flags and their help, in one table.

Results go to standard output, everything else to standard error. Exit codes: see `usage`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import pisync_agent.config as config
from pisync_agent.commands import enroll, queue, record, run, status, sync
from pisync_agent.commands.usage import EXIT_CODES, UNUSABLE, exit_code
from pisync_common import command_line
from pisync_common.errors import PiSyncError
from pisync_common.settings import Setting, add_flags
from pisync_common.streams import INTERRUPTED

PROGRAM: Final = "pisync"

_OUTBOX: Final = (config.MAX_QUEUE, config.KEEP_DELIVERED)
_DELIVERY: Final = (*_OUTBOX, config.RETRY_BASE, config.RETRY_CAP, config.STOP_TIMEOUT, config.LOG_LEVEL)
_ALL: Final = tuple(setting for setting in config.SETTINGS if setting is not config.HOME)


class Command(NamedTuple):
    """One command. `words` are what is typed; `run` carries it out and returns its exit code."""

    words: tuple[str, ...]
    about: str
    example: str
    run: Callable[[argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    settings: tuple[Setting[Any], ...] = ()
    more: str = ""


def _enroll(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", nargs="?", help="the receiver's address: https://pisync.example.org")
    parser.add_argument("--code", metavar="CODE", help="the code an administrator gave you")
    parser.add_argument(
        "--device-id", metavar="ID", help="the name of this device; a name that is taken needs a code made for it"
    )
    _address(parser)
    parser.add_argument("--again", action="store_true", help="change to another receiver, or to another id")
    parser.add_argument("--new-device", action="store_true", help="become another device, with another id")
    parser.add_argument("--moved", action="store_true", help="keep the identity: its card was moved to this machine")


def _address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--also", metavar="URL", action="append", default=[], help="another address of the receiver, for when URL fails"
    )
    parser.add_argument(
        "--insecure-http",
        action="store_true",
        help="allow plain HTTP: others on the network can read and change everything",
    )
    parser.add_argument("--ca", metavar="FILE", help="trust the private certificate authority in this PEM file")


def _record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("type", metavar="TYPE", help="what happened, as noun.verb; - reads whole events as NDJSON")
    parser.add_argument("--learner", metavar="ID", help="who did it")
    parser.add_argument("--object", metavar="ID", help="with what: a video, a page, an assignment")
    parser.add_argument(
        "--at", metavar="TIME", help="when it happened, such as 2026-11-23T10:00:00+03:00; default: now"
    )
    parser.add_argument("--data", metavar="JSON|-", help="details, a JSON object; - reads many as NDJSON")
    parser.add_argument("--id", metavar="KEY", help="your own key of this event: the same key twice is stored once")


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", metavar="N", default="50", help="how many to show (default: 50)")
    parser.add_argument("--after", metavar="SEQ", help="only events after this seq")
    parser.add_argument("--all", action="store_true", help="also delivered events that are still kept")
    _json(parser)


def _seq(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("seq", metavar="SEQ", help="the event's number, as `pisync queue list` or `dead` shows it")
    _json(parser)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts: JSON")


COMMANDS: Final[tuple[Command, ...]] = (
    Command(
        ("enroll",),
        "exchange a code from an administrator for this device's identity",
        "enroll https://pisync.example.org --code K7MQ-2XPD-9RTA-WW4Z --device-id pibook-0042",
        enroll.enroll,
        _enroll,
    ),
    Command(
        ("record",),
        "store one progress event, or many, and print the seq of each; then a power cut cannot lose it",
        "record video.watched --learner s-17 --object math/g5/ch02/v03 --data '{\"seconds_watched\": 240}'",
        record.record,
        _record,
        _OUTBOX,
        more=(
            "Many events come from standard input, one JSON object a line, and are stored in groups as they come in:\n"
            "  pisync record note.taken --data - < notes.ndjson     each line is the `data` of one event of this type\n"
            "  pisync record - < events.ndjson                      each line is a whole event:\n"
            '    {"type": "note.taken", "learner_id": "s-17", "object_id": "math/g5", "data": {}, "id": "app-981",\n'
            '     "occurred_at": "2026-11-23T10:00:00+03:00"}\n'
            "The seq of each line is printed on a line of its own once the event is stored; an empty line gives an\n"
            "empty line. The first line that is refused ends it: the lines before it are stored, nothing after it is,\n"
            "and the message names the line from which to send again. So it does after Ctrl-C or if output fails.\n\n"
            "0 means that all is stored, even if its seq could not be printed; a message says so then."
        ),
    ),
    Command(
        ("sync",),
        "deliver pending events now",
        "sync",
        sync.sync,
        _json,
        _DELIVERY,
        more="Uses the service if it runs. A second `pisync sync` joins the first.",
    ),
    Command(
        ("status",),
        "show what is pending, how the last run went, when the next one is due and why",
        "status",
        status.status,
        _json,
    ),
    Command(("queue", "list"), "list pending events", "queue list --limit 10", queue.show_list, _list),
    Command(("queue", "show"), "show one event", "queue show 17", queue.show_event, _seq),
    Command(
        ("queue", "dead"), "list rejected events, and why they were rejected", "queue dead", queue.show_dead, _json
    ),
    Command(
        ("queue", "requeue"),
        "send a rejected event again, once its cause is fixed; repeating it sends it once",
        "queue requeue 17",
        queue.requeue,
        _seq,
        _OUTBOX,
    ),
    Command(
        ("run",),
        "the service: take records from apps and deliver them, until it is stopped",
        "run --sync-interval 5m",
        run.run,
        settings=_ALL,
    ),
    Command(
        ("config",),
        "show each setting, its value and its source",
        "config --json",
        run.show_config,
        _json,
        _ALL,
    ),
)

_SUBCOMMANDS: Final = {"queue": "list the outbox"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    os.umask(os.umask(0o077) | 0o007)  # nothing is for others; a group may reach the socket
    try:
        arguments = build_parser().parse_args(argv)
        code: int = arguments.run(arguments)
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except PiSyncError as error:
        return _fail(str(error), exit_code(error))
    except OSError as error:
        what = f"{error.filename or 'the system'}: {error.strerror or error}"
        return _fail(f"{what}. Everything that was recorded is kept", UNUSABLE)


def build_parser() -> argparse.ArgumentParser:
    """Build the whole command line from `COMMANDS`."""
    return command_line.build(
        PROGRAM,
        COMMANDS,
        _SUBCOMMANDS,
        _add_command,
        description="PiSync's agent: keeps what learners do on this device, and delivers it when there is a link.",
        epilog=(
            f"examples:\n  {PROGRAM} status\n  {PROGRAM} sync\n\n"
            f"{PROGRAM} COMMAND --help shows each command's flags and an example.\n\n{EXIT_CODES}"
        ),
    )


def _add_command(where: Any, command: Command) -> None:
    more = f"\n\n{command.more}" if command.more else ""
    epilog = f"example:\n  {PROGRAM} {command.example}{more}\n\n{EXIT_CODES}"
    parser = command_line.add_parser(where, command.words[-1], command.about, epilog=epilog)
    command.arguments(parser)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"a TOML file of settings (default: {config.SYSTEM_FILE} if it exists; {config.PREFIX}CONFIG)",
    )
    add_flags(parser, (config.HOME, *command.settings), prefix=config.PREFIX)
    parser.set_defaults(run=command.run)


def _fail(text: str, code: int) -> int:
    print(f"{PROGRAM}: {text}", file=sys.stderr)
    return code
