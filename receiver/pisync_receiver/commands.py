"""What each command does, from the parsed command line to what it prints.

Raises SettingError or WrongUsage for a command line that cannot be carried out, any other PiSyncError for a command
that was not done; `cli` prints them.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

from pisync_common import rules
from pisync_common import settings as values
from pisync_common.errors import RuleError
from pisync_common.settings import Settings
from pisync_common.times import format_ms, now_ms
from pisync_receiver import config, copying, databases, reading
from pisync_receiver.errors import Problem, ReceiverError
from pisync_receiver.store import Reader, TokenRow
from pisync_receiver.store.address import Address, PostgresUrl, address
from pisync_receiver.tables import table

T = TypeVar("T")

_OVERLAP: Final = "24h"
_LONGEST_SECONDS: Final = 3650 * 86400


class WrongUsage(ReceiverError):
    """The command line cannot be carried out as it is."""

    code = "wrong_usage"


class NotFound(ReceiverError):
    """There is no such thing in the database."""

    code = "not_found"


@dataclass(frozen=True)
class Context:
    """One call of a command."""

    arguments: argparse.Namespace
    environ: Mapping[str, str]
    out: TextIO
    err: TextIO

    @cached_property
    def settings(self) -> Settings:
        return config.settings_from(self.arguments, self.environ)

    @cached_property
    def database(self) -> Address:
        return self.settings[config.DATABASE]

    def result(self, text: str) -> None:
        """A result, for standard output."""
        print(text, file=self.out)

    def remark(self, text: str) -> None:
        """Everything else, for standard error."""
        print(text, file=self.err)

    def administer(self, do: str, **message: object) -> dict[str, Any]:
        """Have it done, by the receiver that serves where that is the one writer."""
        return databases.administer(self.database, {"do": do} | message)


def serve(context: Context) -> None:
    from pisync_receiver.server import serve as serve_until_stopped  # uvicorn, which no other command needs

    serve_until_stopped(context.settings, out=context.out, err=context.err)


def worker(context: Context) -> None:
    from pisync_receiver.worker.command import work  # psycopg, which only some have

    work(context.arguments, context.environ, err=context.err)


def token_create(context: Context) -> None:
    arguments = context.arguments
    if arguments.overlap is not None and arguments.replaces is None:
        raise WrongUsage("--overlap says how long a replaced token goes on working; name that token with --replaces ID")
    made = context.administer(
        "token.create",
        role=arguments.role,
        replaces=None if arguments.replaces is None else _token_id(arguments.replaces),
        overlap_ms=_milliseconds("--overlap", arguments.overlap or _OVERLAP),
    )
    context.result(made["token"])
    context.remark(
        f"This is {arguments.role} token {made['id']}. It is shown this once: keep it where secrets are kept."
    )
    if (end := made.get("replaced_ends")) is not None:
        context.remark(f"Token {arguments.replaces} works until {end}.")


def token_list(context: Context) -> None:
    with _reader(context) as store:
        rows = [_token_row(row) for row in store.all_tokens()]
    _print_rows(context, rows, ("id", "role", "device_id", "created_at", "expires_at", "revoked_at", "last_refused"))


def token_revoke(context: Context) -> None:
    token_id = _token_id(context.arguments.id)
    context.administer("token.revoke", id=token_id)
    context.result(f"{token_id} is revoked: whoever uses it is refused from now on")


def enrollment_create(context: Context) -> None:
    arguments = context.arguments
    made = context.administer(
        "enrollment.create",
        uses=_checked("--uses", values.integer(1, 1_000_000), arguments.uses),
        expires_ms=_milliseconds("--expires", arguments.expires),
        site=_site(arguments.site),
        device_id=None if arguments.device_id is None else _device_id(arguments.device_id),
    )
    context.result(made["code"])
    context.remark(
        f"It works {_times(made['uses'])} until {made['expires_at']}. On the device: pisync enroll URL --code CODE"
    )


def devices(context: Context) -> None:
    columns = (
        "device_id",
        "site",
        "last_contact",
        "last_refused",
        "consecutive_failures",
        "last_success_at",
        "cloned_since",
    )
    _print_answer(context, reading.DEVICES, columns)


def history(context: Context) -> None:
    columns = ("timestamp", "total_files_synced", "total_errors", "internet_speed", "errors", "received_at", "id")
    _print_answer(context, reading.HISTORY, columns, device_id=_device_id(context.arguments.device))


def failures(context: Context) -> None:
    columns = (
        "device_id",
        "site",
        "consecutive_failures",
        "total_failures",
        "failing_since",
        "last_success_at",
        "last_errors",
    )
    _print_answer(context, reading.FAILURES, columns)


def backup(context: Context) -> None:
    file = Path(context.arguments.file).expanduser().absolute()
    if file.exists():
        raise ReceiverError(f"{file} exists already and was left as it is; name a new file")
    _existing(context)
    databases.backup(context.database, file)
    context.result(f"{file}: {file.stat().st_size:,} bytes")


def copy(context: Context) -> None:
    source = _checked("--from", address, context.arguments.source)
    target = _checked("--to", address, context.arguments.target)
    if not isinstance(source, Path) or not isinstance(target, PostgresUrl):
        raise WrongUsage("copying goes --from sqlite:///… --to postgresql://…; nothing else is offered")
    if not source.is_file():
        raise NotFound(f"there is no database {source}; nothing was copied")
    done = copying.copy(source, target, now_ms=now_ms, progress=copying.shown_on(context.err))
    rows = [{"table": name, "rows": f"{count:,}", "compared": "the same"} for name, count in done.rows.items()]
    context.out.write(table(rows, ("table", "rows", "compared")))
    if done.anew:
        context.remark(f"All of it is in {target}. Start the receivers with it: --database-url URL; keep {source}.")
    else:
        context.remark(f"All of it was in {target} already; nothing was changed.")


def migrate(context: Context) -> None:
    _existing(context)
    applied = databases.migrate(context.database)
    context.result(f"applied: {', '.join(applied)}" if applied else "the schema is this program's own; nothing to do")


def show_config(context: Context) -> None:
    rows = [asdict(row) for row in context.settings.describe()]
    _print_rows(context, rows, ("name", "value", "source"))


def _print_answer(context: Context, path: str, columns: Sequence[str], **in_path: str) -> None:
    query = reading.query_of(context.arguments, path)
    rows: list[dict[str, Any]] = []
    with _reader(context) as store:
        while True:
            page = _page(store, path, query, in_path)
            rows += page.rows
            if page.cursor is None or not context.arguments.all:
                break
            query["cursor"] = page.cursor
    _print_rows(context, rows, columns)
    if page.cursor is not None:
        context.remark(f"There are more: --cursor {page.cursor} shows the next page, --all every one.")


def _page(store: Reader, path: str, query: Mapping[str, str], in_path: Mapping[str, str]) -> reading.Page:
    try:
        return reading.read_page(store, path, dict(query), **in_path)
    except Problem as problem:
        if problem.status == 404:
            raise NotFound(problem.detail) from problem
        if problem.status < 500:
            raise WrongUsage(problem.detail) from problem
        raise


def _print_rows(context: Context, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    if context.arguments.json:
        context.result(json.dumps(rows, ensure_ascii=False, indent=2))
    elif rows:
        context.out.write(table(rows, columns))
    else:
        context.remark("There are none.")


@contextmanager
def _reader(context: Context) -> Iterator[Reader]:
    _existing(context)
    with databases.open_reader(context.database) as store:
        yield store


def _existing(context: Context) -> None:
    if not databases.exists(context.database):
        raise NotFound(
            f"there is no database at {context.database} yet; `pisync-receiver serve` makes it, "
            "or name another with --database-url"
        )


def _token_row(row: TokenRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "role": row.role,
        "device_id": row.device_id,
        "created_at": format_ms(row.created_ms),
        "expires_at": _time(row.expires_ms),
        "revoked_at": _time(row.revoked_ms),
        "last_refused": _time(row.last_refused_ms),
    }


def _time(ms: int | None) -> str | None:
    return None if ms is None else format_ms(ms)


def _token_id(value: str) -> str:
    if value.startswith(("psa_", "psv_", "psd_")):
        raise WrongUsage("that is a token itself, not its id: keep it secret; `token list` shows the ids")
    return _by_rule("ID", value)


def _device_id(value: str) -> str:
    return _by_rule("the device's id", value)


def _by_rule(name: str, value: str) -> str:
    try:
        return rules.check_id(name, value)
    except RuleError as error:
        raise WrongUsage(str(error)) from error


def _site(value: str | None) -> str | None:
    if value is not None and (not 1 <= len(value) <= 256 or not value.isprintable()):
        raise WrongUsage("--site must be 1 to 256 printable characters")
    return value


def _milliseconds(flag: str, value: str) -> int:
    seconds = _checked(flag, values.duration, value)
    if seconds > _LONGEST_SECONDS:
        raise WrongUsage(f"{flag} {value!r}: ten years (3650d) is the longest")
    return round(seconds * 1000)


def _checked(flag: str, parse: Callable[[str], T], value: str) -> T:
    try:
        return parse(value)
    except ValueError as error:
        raise WrongUsage(f"{flag} {value!r}: {error}") from error


def _times(uses: int) -> str:
    return "once" if uses == 1 else f"{uses:,} times"
