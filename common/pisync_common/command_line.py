"""The command lines of both programs: commands of one word or two, each with an example."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from pisync_common import __version__


class Command(Protocol):
    """As much of a command as the parser needs. `words` are what is typed."""

    @property
    def words(self) -> tuple[str, ...]: ...
    @property
    def about(self) -> str: ...
    @property
    def example(self) -> str: ...


C = TypeVar("C", bound=Command)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Asks for the terminal's width itself: argparse imports `shutil` for it, for every flag that is added."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def build(
    program: str,
    commands: Sequence[C],
    groups: Mapping[str, str],
    add: Callable[[Any, C], None],
    *,
    description: str,
    epilog: str,
    listed: bool = True,
) -> argparse.ArgumentParser:
    """Build the whole command line. `groups` describes the first words that commands share; `add` adds one command.

    Unless `listed`, the help has no list of commands but that of `description`.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} [-h] [--version] COMMAND ...",
        description=description,
        epilog=epilog,
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    shown: dict[str, Any] = {"title": "commands"} if listed else {"help": argparse.SUPPRESS}
    top = parser.add_subparsers(prog=program, metavar="COMMAND", required=True, **shown)
    places: dict[str, Any] = {}
    for command in commands:
        first = command.words[0]
        if len(command.words) == 1:
            add(top, command)
            continue
        if first not in places:
            examples = [f"\n  {program} {each.example}" for each in commands if each.words[0] == first]
            group = add_parser(top, first, groups[first], epilog=f"examples:{''.join(examples)}")
            places[first] = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
        add(places[first], command)
    return parser


def add_parser(where: Any, word: str, about: str, *, epilog: str) -> argparse.ArgumentParser:
    """Add a parser for one more word, with `about` as its help."""
    parser: argparse.ArgumentParser = where.add_parser(word, help=about, **_described(about, epilog))
    return parser


def single_parser(program: str, about: str, *, epilog: str) -> argparse.ArgumentParser:
    """Return the parser of one command alone: the whole command line takes five times as long to build."""
    return argparse.ArgumentParser(prog=program, **_described(about, epilog))


def _described(about: str, epilog: str) -> dict[str, Any]:
    return {
        "description": f"{about[0].upper()}{about[1:]}.",
        "epilog": epilog,
        "formatter_class": HelpFormatter,
        "allow_abbrev": False,
    }


def _columns() -> int:
    stated = os.environ.get("COLUMNS", "")
    if stated.isascii() and stated.isdigit() and int(stated):
        return int(stated)
    try:
        return os.get_terminal_size(sys.__stdout__.fileno() if sys.__stdout__ else 1).columns or 80
    except (OSError, ValueError):
        return 80
