"""`pisync queue`: list the outbox, and send a rejected event again."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pisync_agent.config as config
from pisync_agent.commands.usage import DONE, WrongUsage, settings_of
from pisync_agent.outbox import files
from pisync_agent.outbox.outbox import open_outbox
from pisync_agent.outbox.reader import OutboxReader
from pisync_agent.service import protocol
from pisync_agent.service.lock import writer_lock
from pisync_common.limits import SEQ_MAX
from pisync_common.settings import Settings


def show_list(arguments: argparse.Namespace) -> int:
    limit, after = _number("--limit", arguments.limit), _number("--after", arguments.after or "0")
    with _reader(arguments) as reader:
        rows, last = ([], 0) if reader is None else _rows(reader, after, limit, everything=arguments.all)
    _print(rows, arguments.json, _row_text)
    if rows and rows[-1]["seq"] < last and not arguments.json:
        print(f"… and {last - rows[-1]['seq']:,} more: --after {rows[-1]['seq']}")
    return DONE


def show_event(arguments: argparse.Namespace) -> int:
    seq = _number("SEQ", arguments.seq)
    with _reader(arguments) as reader:
        body = None if reader is None else reader.event(seq)
    if body is None:
        raise WrongUsage(f"there is no event {seq} here; see `pisync queue list --all` and `pisync queue dead`")
    print(body if arguments.json else _pretty(body))
    return DONE


def show_dead(arguments: argparse.Namespace) -> int:
    with _reader(arguments) as reader:
        letters = [] if reader is None else reader.dead_letters()
    _print([asdict(letter) for letter in letters], arguments.json, _letter_text)
    return DONE


def requeue(arguments: argparse.Namespace) -> int:
    settings, seq = settings_of(arguments), _number("SEQ", arguments.seq)
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


@contextmanager
def _reader(arguments: argparse.Namespace) -> Iterator[OutboxReader | None]:
    """Open the outbox for reading; yield None if nothing was ever recorded."""
    home: Path = settings_of(arguments)[config.HOME]
    path = files.database(home)
    with files.errors(path):
        there = path.exists() and path.stat().st_size > 0
    if not there:
        yield None
        return
    with OutboxReader(home) as reader:
        yield reader


def _rows(reader: OutboxReader, after: int, limit: int, *, everything: bool) -> tuple[list[dict[str, Any]], int]:
    state = reader.state()
    start = after if everything else max(after, state.delivered)
    return [_row(*found) for found in reader.list_events(start, limit)], state.last_seq


def _row(seq: int, body: str, state: str) -> dict[str, Any]:
    try:
        event = json.loads(body)
    except ValueError:
        event = {}
    names = ("type", "occurred_at", "learner_id", "object_id")
    return {"seq": seq, "state": str(state)} | {name: event.get(name) for name in names} | {"bytes": len(body.encode())}


def _row_text(row: Mapping[str, Any]) -> str:
    who = " ".join(str(row[name]) for name in ("learner_id", "object_id") if row[name])
    return f"{row['seq']:>8}  {row['state']:<9}  {row['occurred_at'] or '':<24}  {row['type'] or '?'}  {who}".rstrip()


def _letter_text(letter: Mapping[str, Any]) -> str:
    again = f"  (requeued as {letter['requeued_as']})" if letter["requeued_as"] else ""
    return f"{letter['seq']:>8}  {letter['code']}: {letter['detail']}{again}"


def _pretty(body: str) -> str:
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=False)
    except ValueError:  # the remains of a damaged event
        return body


def _print(rows: Sequence[Mapping[str, Any]], as_json: bool, text: Callable[[Mapping[str, Any]], str]) -> None:
    if as_json:
        print(json.dumps(rows))
    for row in () if as_json else rows:
        print(text(row))


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20) or not int(value) <= SEQ_MAX:
        raise WrongUsage(f"{name} must be a whole number, such as 17; got {value[:40]!r}")
    return int(value)
