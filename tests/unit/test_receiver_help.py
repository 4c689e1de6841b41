"""Documentation is tested: every command and flag explains itself, and what examples show can be typed."""

import argparse
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pisync_common.settings import Setting
from pisync_receiver import config
from pisync_receiver.api.devices import DEVICES
from pisync_receiver.api.events import EVENTS
from pisync_receiver.api.fleet import SITES
from pisync_receiver.api.sync_events import FAILURES, HISTORY
from pisync_receiver.commands import cli
from pisync_receiver.commands.context import Command
from pisync_receiver.http.params import Query

Commands = argparse._SubParsersAction


def walk(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """`parser` and every command below it."""
    yield parser
    for action in parser._actions:
        if isinstance(action, Commands):
            for below in action.choices.values():
                yield from walk(below)


PARSERS = list(walk(cli.build_parser()))
LEAVES = [parser for parser in PARSERS if not any(isinstance(action, Commands) for action in parser._actions)]


def flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {option: action for action in parser._actions for option in action.option_strings}


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_every_command_says_what_it_does_and_shows_an_example(parser: argparse.ArgumentParser) -> None:
    shown = parser.format_help()
    assert parser.description
    assert f"  {parser.prog}" in shown.partition("example")[2]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.prog)
def test_every_flag_has_help(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if not isinstance(action, Commands):
            assert action.help, action.option_strings or action.dest


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: " ".join(command.words))
def test_every_example_is_a_command_line_that_is_understood(command: Command) -> None:
    arguments = cli.build_parser().parse_args(shlex.split(command.example))
    assert arguments.run is command.run


def test_the_commands_are_those_of_the_table() -> None:
    assert {parser.prog for parser in LEAVES} == {
        f"{cli.PROGRAM} {' '.join(command.words)}" for command in cli.COMMANDS
    }


def test_no_flag_may_be_shortened() -> None:
    assert not any(parser.allow_abbrev for parser in PARSERS)


@pytest.mark.parametrize(
    ("name", "settings"), [("serve", config.SERVING), ("worker", config.PUBLISHING), ("config", config.SETTINGS)]
)
def test_a_command_takes_every_setting_of_its_own(name: str, settings: Sequence[Setting[Any]]) -> None:
    (parser,) = (parser for parser in LEAVES if parser.prog.split()[-1] == name)
    assert {setting.option for setting in settings if setting.flag} <= set(flags(parser))


def test_every_command_can_be_told_where_the_database_is() -> None:
    for parser in LEAVES:
        databases = {"--from", "--to"} if parser.prog.endswith(" copy") else {"--database-url"}
        assert {"--config", *databases} <= set(flags(parser)), parser.prog


@pytest.mark.parametrize(
    ("name", "query"),
    [("devices", DEVICES), ("sites", SITES), ("history", HISTORY), ("failures", FAILURES), ("events", EVENTS)],
)
def test_questions_take_the_parameters_of_the_api(name: str, query: Query) -> None:
    parser = next(parser for parser in LEAVES if parser.prog.endswith(name))
    assert {"--" + param.name.replace("_", "-") for param in query.params} <= set(flags(parser))


def test_role_is_accepted_for_scope() -> None:
    assert cli.build_parser().parse_args(["token", "create", "--role", "viewer"]).scope == "viewer"
