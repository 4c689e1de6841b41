"""`pisync queue`: list the outbox, and send a rejected event again."""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, Final

import pisync_agent.config as config
from pisync_agent.commands.command import OUTBOX, Command, add_json
from pisync_agent.commands.usage import DONE, WrongUsage, settings_of, whole_number
from pisync_agent.outbox import files
from pisync_agent.outbox.outbox import open_outbox
from pisync_agent.service import protocol, views
from pisync_agent.service.lock import writer_lock
from pisync_common.settings import Settings


def show_list(arguments: argparse.Namespace) -> int:
    limit, after = whole_number("--limit", arguments.limit), whole_number("--after", arguments.after or "0")
    with _look(arguments) as view:
        rows = view.events(after, limit, everything=arguments.all)
        last = view.state()["outbox"]["last_seq"]
    _print(rows, arguments.json, _row_text, empty="no event is pending")
    if rows and rows[-1]["seq"] < last and not arguments.json:
        print(f"… and {last - rows[-1]['seq']:,} more: --after {rows[-1]['seq']}")
    return DONE


def show_event(arguments: argparse.Namespace) -> int:
    seq = whole_number("SEQ", arguments.seq)
    with _look(arguments) as view:
        body = view.event(seq)
    if body is None:
        raise WrongUsage(f"there is no event {seq} here; see `pisync queue list --all` and `pisync queue dead`")
    print(body if arguments.json else _pretty(body))
    return DONE


def show_dead(arguments: argparse.Namespace) -> int:
    with _look(arguments) as view:
        letters = view.dead()
    _print(letters, arguments.json, _letter_text, empty="no event was rejected")
    return DONE


def requeue(arguments: argparse.Namespace) -> int:
    settings, seq = settings_of(arguments), whole_number("SEQ", arguments.seq)
    again = protocol.requeue(files.socket(settings[config.HOME]), seq)
    if again is None:
        again = _requeue_alone(settings, seq)
    print(json.dumps({"seq": again}) if arguments.json else again)
    return DONE


def _requeue_alone(settings: Settings, seq: int) -> int:
    home = settings[config.HOME]
    if not files.database(home).exists():
        raise WrongUsage(f"there is no dead letter {seq}: nothing was ever recorded in {home}")
    with writer_lock(files.lock(home)), closing(open_outbox(home, limits=config.limits(settings))) as outbox:
        return outbox.requeue(seq)


def _look(arguments: argparse.Namespace) -> AbstractContextManager[views.View]:
    return views.look(settings_of(arguments)[config.HOME])


def _row_text(row: Mapping[str, Any]) -> str:
    who = " ".join(str(row[name]) for name in ("learner_id", "object_id") if row.get(name))
    return f"{row['seq']:>8}  {row['state']:<9}  {row['occurred_at'] or '':<24}  {row['type'] or '?'}  {who}".rstrip()


def _letter_text(letter: Mapping[str, Any]) -> str:
    again = f"  (requeued as {letter['requeued_as']})" if letter["requeued_as"] else ""
    return f"{letter['seq']:>8}  {letter['code']}: {letter['detail']}{again}"


def _pretty(body: str) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:  # the remains of a damaged event
        return body


def _print(
    rows: Sequence[Mapping[str, Any]], as_json: bool, text: Callable[[Mapping[str, Any]], str], *, empty: str
) -> None:
    if as_json:
        print(json.dumps(rows))
    elif not rows:
        print(f"pisync: {empty}", file=sys.stderr)
    for row in () if as_json else rows:
        print(text(row))


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--limit", metavar="N", default="50", help="how many to show (default: 50)")
    parser.add_argument("--after", metavar="SEQ", help="only events after this seq")
    parser.add_argument("--all", action="store_true", help="also delivered events that are still kept")
    add_json(parser)


def _seq_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("seq", metavar="SEQ", help="the event's number, as `pisync queue list` or `dead` shows it")
    add_json(parser)


LIST: Final = Command(run=show_list, example="queue list --limit 10", arguments=_list_arguments)
SHOW: Final = Command(run=show_event, example="queue show 17", arguments=_seq_arguments)
DEAD: Final = Command(run=show_dead, example="queue dead", arguments=add_json)
REQUEUE: Final = Command(
    run=requeue,
    example="queue requeue 17",
    arguments=_seq_arguments,
    settings=OUTBOX,
    more="Repeating it sends the event once.",
)
