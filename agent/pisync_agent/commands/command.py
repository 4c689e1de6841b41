"""What a command is made of, and the arguments that several commands share."""

import argparse
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pisync_agent.config as config
from pisync_common.settings import Setting

OUTBOX: Final = (config.MAX_QUEUE, config.KEEP_DELIVERED)
DELIVERY: Final = (*OUTBOX, config.RETRY_BASE, config.RETRY_CAP, config.STOP_TIMEOUT, config.LOG_LEVEL)


class Command(NamedTuple):
    """One command; `cli` lists it. `run` carries it out and returns its exit code."""

    run: Callable[[argparse.Namespace], int]
    example: str
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    settings: tuple[Setting[Any], ...] = ()
    more: str = ""


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts: JSON")
