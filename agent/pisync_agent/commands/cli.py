"""`pisync`: the table of its commands, and its help.

Results go to standard output, everything else to standard error. Exit codes: see `usage`.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Final, NamedTuple

import pisync_agent.config as config
from pisync_agent.commands.command import Command
from pisync_agent.commands.usage import DONE, EXIT_CODES, UNUSABLE, exit_code
from pisync_agent.formatting import paragraphs
from pisync_common import command_line
from pisync_common.errors import PiSyncError
from pisync_common.settings import add_flags
from pisync_common.streams import INTERRUPTED

PROGRAM: Final = "pisync"


class Entry(NamedTuple):
    """A command in the table: what is typed, what it does, and `module:NAME` of its Command, imported when needed."""

    typed: str
    about: str
    place: str

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(self.typed.split())

    @property
    def command(self) -> Command:
        module, _, name = self.place.partition(":")
        found: Command = getattr(import_module(f"pisync_agent.commands.{module}"), name)
        return found

    @property
    def example(self) -> str:
        return self.command.example


TASKS: Final[Mapping[str, tuple[Entry, ...]]] = {
    "See how this device is": (
        Entry("status", "show whether all is delivered, what is pending and why", "status:STATUS"),
        Entry("doctor", "find out what is wrong, and what to do first", "doctor:DOCTOR"),
        Entry("history", "show the last sync runs: when, how many, how fast", "history:HISTORY"),
        Entry("logs", "show what the service wrote to the journal", "logs:LOGS"),
        Entry("support", "write one file for an engineer: no secret, no learner, no event", "support:SUPPORT"),
        Entry("queue list", "list pending events", "queue:LIST"),
        Entry("queue show", "show one event", "queue:SHOW"),
        Entry("queue dead", "list rejected events, and why they were rejected", "queue:DEAD"),
    ),
    "Deliver": (
        Entry("sync", "deliver pending events now", "sync:SYNC"),
        Entry("queue requeue", "send a rejected event again, once its cause is fixed", "queue:REQUEUE"),
    ),
    "Record": (
        Entry("record", "store one event, or many; then a power cut cannot lose it", "record:RECORD"),
        Entry("adopt", "bring another outbox's events into this device's, each once", "adopt:ADOPT"),
    ),
    "Set up": (
        Entry("enroll", "exchange an administrator's code for an identity", "enroll:ENROLL"),
        Entry("enroll-file", "take up an enrollment file: it enrolls without a person", "enroll:ENROLL_FILE"),
        Entry("set-url", "change the receiver's address, and nothing else", "set_url:SET_URL"),
        Entry("unenroll", "delete the identity and its token; events stay", "leaving:UNENROLL"),
        Entry("reset", "delete everything recorded on this device, and its identity", "leaving:RESET"),
        Entry("seal", "prepare this card for copying: each copy becomes a device", "leaving:SEAL"),
        Entry("config", "show each setting, its value and its source", "run:CONFIG"),
        Entry("run", "the service: take records from apps and deliver them", "run:RUN"),
    ),
}
"""Every command, by the task it is for. A new command is one line here, and a Command in its module."""

ENTRIES: Final = tuple(entry for entries in TASKS.values() for entry in entries)

_GROUPS: Final = {"queue": "list the outbox, and send a rejected event again"}
"""The first words that commands share."""

_EXAMPLES: Final = ("status", "sync")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Without a command, print the help."""
    os.umask(os.umask(0o077) | 0o007)  # nothing is for others; a group may reach the socket
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if not given:
            print(build_parser().format_help(), end="")
            return DONE
        arguments = parse(given)
        code: int = arguments.run(arguments)
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except PiSyncError as error:
        return _fail(str(error), exit_code(error))
    except OSError as error:
        what = f"{error.filename or 'the system'}: {error.strerror or error}"
        return _fail(f"{what}. Everything that was recorded is kept", UNUSABLE)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. Only the command that it names is imported; help and mistakes need all of them."""
    for entry in ENTRIES:
        words = entry.words
        if tuple(argv[: len(words)]) == words:
            parser = command_line.single_parser(f"{PROGRAM} {entry.typed}", entry.about, epilog=_epilog(entry))
            _fill(parser, entry.command)
            return parser.parse_args(argv[len(words) :])
    return build_parser().parse_args(argv)


def build_parser() -> argparse.ArgumentParser:
    """Build the whole command line."""
    examples = "\n".join(f"  {PROGRAM} {entry.example}" for entry in ENTRIES if entry.typed in _EXAMPLES)
    return command_line.build(
        PROGRAM,
        ENTRIES,
        _GROUPS,
        _add_command,
        description=(
            "PiSync's agent: keeps what learners do on this device, and delivers it when\nthere is a link.\n\n"
            + _listing()
        ),
        epilog=(
            f"examples:\n{examples}\n\n"
            f"{PROGRAM} COMMAND --help shows each command's flags and an example.\n\n"
            "Where the service is installed, call commands with sudo. Members of its group\nrecord and sync "
            f"without, and see status, history and the queue.\n\n{EXIT_CODES}"
        ),
        listed=False,
    )


def _listing() -> str:
    width = max(len(entry.typed) for entry in ENTRIES) + 2
    blocks = (
        "\n".join([f"{task}:", *(f"  {entry.typed:<{width}}{entry.about}" for entry in entries)])
        for task, entries in TASKS.items()
    )
    return "\n\n".join(blocks)


def _add_command(where: Any, entry: Entry) -> None:
    _fill(command_line.add_parser(where, entry.words[-1], entry.about, epilog=_epilog(entry)), entry.command)


def _epilog(entry: Entry) -> str:
    more = f"\n\n{paragraphs(entry.command.more)}" if entry.command.more else ""
    return f"example:\n  {PROGRAM} {entry.example}{more}\n\n{EXIT_CODES}"


def _fill(parser: argparse.ArgumentParser, command: Command) -> None:
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
