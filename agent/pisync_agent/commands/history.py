"""`pisync history`: the last sync runs."""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any, Final

import pisync_agent.config as config
from pisync_agent.commands.command import Command, add_json
from pisync_agent.commands.usage import DONE, whole_number
from pisync_agent.formatting import count, moment, pending, row, size, span
from pisync_agent.service import views

_INDENT: Final = 21


def history(arguments: argparse.Namespace) -> int:
    limit = whole_number("--limit", arguments.limit)
    runs = views.runs(config.settings_from(arguments)[config.HOME], limit)
    if arguments.json:
        print(json.dumps(runs))
    elif not runs:
        print("pisync: no sync run has delivered anything, or failed, so far", file=sys.stderr)
    else:
        print("\n".join(row(moment(run["at_ms"]), text(run), _INDENT) for run in runs))
    return DONE


def text(run: Mapping[str, Any]) -> str:
    """Describe one sync run in a few words: how many events, how fast, what failed."""
    failure, number = run["failure"], run["delivered"] + run["duplicates"]
    known = f" ({run['duplicates']:,} already known)" if run["duplicates"] else ""
    speed = f", {run['speed_mbit']:.2g} Mbit/s" if run["speed_mbit"] else ""
    parts = [
        f"failed ({failure['kind'] or failure['code']}): {failure['detail']}" if failure else "",
        f"delivered {count(number, 'event')}{known} in {span(run['seconds'])}, {size(run['bytes_sent'])} sent{speed}"
        if number or not failure
        else "",
        f"{count(run['rejected'], 'event')} rejected" if run["rejected"] else "",
        pending(run["waiting"]),
    ]
    return "; ".join(filter(None, parts))


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", metavar="N", default="20", help="how many to show (default: 20)")
    add_json(parser)


HISTORY: Final = Command(
    run=history,
    example="history --limit 5",
    arguments=_arguments,
    more=(
        "The newest run stands first. A run that found nothing to deliver is not listed. The last few hundred runs\n"
        "are kept; a power cut may lose the newest of them."
    ),
)
