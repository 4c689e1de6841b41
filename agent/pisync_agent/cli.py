"""`pisync`: the commands, their flags and their help, in one table.

Results go to standard output, everything else to standard error. Exit codes: 0 done, nothing waits; 1 something waits
or was rejected; 2 wrong usage; 3 receiver unreachable; 4 not enrolled, or refused; 5 the local store is unusable.

`pisync status` must be there at once, also on a slow device: this module imports nothing that it does not need, and
fills in the flags of the one command that was typed.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

from pisync_agent.errors import DeliveryError, NotEnrolled, Refused, Unreachable
from pisync_agent.home import PREFIX, SYSTEM_FILE
from pisync_common import command_line
from pisync_common.errors import PiSyncError, RuleError, SettingError

PROGRAM: Final = "pisync"
DONE, WAITS, WRONG_USAGE, UNREACHABLE, REFUSED, UNUSABLE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

EXIT_CODES: Final = (
    "exit codes: 0 done, nothing waits; 1 something waits or was rejected; 2 wrong usage; 3 receiver unreachable;\n"
    "4 not enrolled, or the receiver refused the device; 5 the local store is unusable"
)

# The same words as in the table of settings, which is not read for every command (a test compares them).
HOME_HELP: Final = (
    "the agent's folder: outbox, identity and socket (default: <the user's data folder>/pisync; PISYNC_AGENT_HOME)"
)

OUTBOX: Final = ("max_queue", "keep_delivered")
DELIVERY: Final = (*OUTBOX, "retry_base", "retry_cap", "stop_timeout", "log_level")
ALL: Final = ("*",)


class WrongUsage(PiSyncError):
    """The command line cannot be carried out as it is."""

    code = "wrong_usage"


class Command(NamedTuple):
    """One command. `words` are what is typed; `run` names the function that carries it out, as `module.function`."""

    words: tuple[str, ...]
    about: str
    example: str
    run: str
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    settings: tuple[str, ...] = ()
    more: str = ""


def _enroll(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the receiver's address, such as https://pisync.example.org")
    parser.add_argument("--code", required=True, metavar="CODE", help="the code an administrator gave you")
    parser.add_argument(
        "--device-id", metavar="ID", help="the name this device shall have; one that is taken needs a code made for it"
    )
    parser.add_argument(
        "--insecure-http", action="store_true", help="allow plain HTTP: anyone on the way can read and change it all"
    )
    parser.add_argument("--ca", metavar="FILE", help="trust the private certificate authority in this PEM file")
    parser.add_argument(
        "--again", action="store_true", help="change to another receiver, or another id, than this device has now"
    )


def _record(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("type", metavar="TYPE", help="what happened, as noun.verb; - reads whole events as NDJSON")
    parser.add_argument("--learner", metavar="ID", help="who did it")
    parser.add_argument("--object", metavar="ID", help="with what: a video, a page, an assignment")
    parser.add_argument("--data", metavar="JSON|-", help="more about it, a JSON object; - reads many as NDJSON")
    parser.add_argument("--id", metavar="KEY", help="your own name for this event: the same one twice is stored once")


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", metavar="N", default="50", help="how many to show (default: 50)")
    parser.add_argument("--after", metavar="SEQ", help="only events after this one")
    parser.add_argument("--all", action="store_true", help="also events that were delivered and are still kept")
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
        "enroll https://pisync.example.org --code K7QP-2M4X --device-id pibook-0042",
        "commands.enroll",
        _enroll,
    ),
    Command(
        ("record",),
        "store one progress event, or many, and print the seq of each; a power cut cannot lose it then",
        "record video.watched --learner s-17 --object math/g5/ch02/v03 --data '{\"seconds_watched\": 240}'",
        "commands.record",
        _record,
        OUTBOX,
        more=(
            "Many events come from standard input, one JSON object a line, and are stored in groups as they come in:\n"
            "  pisync record note.taken --data - < notes.ndjson     each line is the `data` of one event of this type\n"
            "  pisync record - < events.ndjson                      each line is a whole event:\n"
            '    {"type": "note.taken", "learner_id": "s-17", "object_id": "math/g5", "data": {}, "id": "app-981"}\n'
            "One seq is printed for each line. A bad line ends it, with its number; what was printed before is stored."
        ),
    ),
    Command(
        ("sync",),
        "deliver what waits, now",
        "sync",
        "commands.sync",
        _json,
        DELIVERY,
        more="Through the service where it runs, else by itself. A second `pisync sync` joins the first.",
    ),
    Command(
        ("status",),
        "say what waits, how the last run went, when the next try is and why",
        "status",
        "status.status",
        _json,
    ),
    Command(("queue", "list"), "list the events that wait", "queue list --limit 10", "queue.show_list", _list),
    Command(("queue", "show"), "show one event", "queue show 17", "queue.show_event", _seq),
    Command(("queue", "dead"), "list the events that were rejected, and why", "queue dead", "queue.show_dead", _json),
    Command(
        ("queue", "requeue"),
        "send a rejected event again, once the cause is mended; twice does it once",
        "queue requeue 17",
        "queue.requeue",
        _seq,
        OUTBOX,
    ),
    Command(
        ("run",),
        "the service: take records from apps and deliver them, until it is stopped",
        "run --sync-interval 5m",
        "commands.run",
        settings=ALL,
    ),
    Command(
        ("config",),
        "show each setting, its value and where it came from",
        "config --json",
        "commands.show_config",
        _json,
        ALL,
    ),
)

_GROUPS: Final = {"queue": "look into the outbox"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    typed = sys.argv[1:] if argv is None else list(argv)
    os.umask(os.umask(0o077) | 0o007)  # what learners did is nobody else's; a group may share it where the user says so
    try:
        arguments = build_parser(only=typed[0] if typed else None).parse_args(typed)
        code = _carry_out(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python must not complain about it when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WAITS
    except PiSyncError as error:
        return _failed(str(error), exit_code(error))
    except OSError as error:
        what = f"{error.filename or 'the system'}: {error.strerror or error}"
        return _failed(f"{what}. Everything that was recorded is kept", UNUSABLE)


def exit_code(error: PiSyncError) -> int:
    """The exit code of a command that ended with `error`."""
    match error:
        case SettingError() | WrongUsage() | RuleError():
            return WRONG_USAGE
        case NotEnrolled() | Refused():
            return REFUSED
        case Unreachable():
            return UNREACHABLE
        case DeliveryError():
            return WAITS
        case _:
            return UNUSABLE


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The whole command line, from `COMMANDS`; with `only`, the flags of that command alone."""
    return command_line.build(
        PROGRAM,
        COMMANDS,
        _GROUPS,
        lambda where, command: _add_command(where, command, whole=only in (None, command.words[0])),
        description="PiSync's agent: keeps what learners do on this device, and delivers it when there is a link.",
        epilog=(
            f"examples:\n  {PROGRAM} status\n  {PROGRAM} sync\n\n"
            f"{PROGRAM} COMMAND --help shows each command's flags and an example.\n\n{EXIT_CODES}"
        ),
    )


def _add_command(where: Any, command: Command, *, whole: bool) -> None:
    if not whole:
        where.add_parser(command.words[-1], help=command.about)
        return
    more = f"\n\n{command.more}" if command.more else ""
    epilog = f"example:\n  {PROGRAM} {command.example}{more}\n\n{EXIT_CODES}"
    parser = command_line.add_parser(where, command.words[-1], command.about, epilog=epilog)
    command.arguments(parser)
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"a TOML file of settings (default: {SYSTEM_FILE} if it is there; {PREFIX}CONFIG)",
    )
    parser.add_argument("--home", metavar="DIR", help=HOME_HELP)
    if command.settings:
        _add_settings(parser, command.settings)
    parser.set_defaults(run=command.run)


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    from pisync_agent import config
    from pisync_common.settings import add_flags

    wanted = [
        setting for setting in config.SETTINGS if setting is not config.HOME and (names == ALL or setting.name in names)
    ]
    add_flags(parser, wanted, prefix=PREFIX)


def _carry_out(arguments: argparse.Namespace) -> int:
    module, _, function = arguments.run.partition(".")
    run: Callable[[argparse.Namespace], int] = getattr(import_module(f"pisync_agent.{module}"), function)
    return run(arguments)


def _failed(text: str, code: int) -> int:
    print(f"{PROGRAM}: {text}", file=sys.stderr)
    return code
