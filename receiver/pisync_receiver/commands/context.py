"""What a command is, and one call of it: its command line, its settings, and where its results go."""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar

from pisync_common import settings as values
from pisync_common.settings import Setting, Settings
from pisync_receiver import config
from pisync_receiver.commands import exporting
from pisync_receiver.commands.client import Api, connected, flags_of, query_of
from pisync_receiver.commands.console import table
from pisync_receiver.errors import WrongUsage
from pisync_receiver.http.params import Query

T = TypeVar("T")
Row = Mapping[str, Any]


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

    def api(self) -> AbstractContextManager[Api]:
        """Reach the receiver."""
        return connected(self.settings)

    def call(self, method: str, path: str, **body: object) -> Any:
        """Make one call; fields of the body that are None are left out."""
        with self.api() as api:
            return api.call(method, path, _given(body) if body else None)

    def call_first(self, method: str, path: str, **body: object) -> Any:
        """Make a call that may be the first of all, before the receiver's first start: as `call`, and a database that
        the settings name is made where none is yet."""
        with connected(self.settings, making=self.remark) as api:
            return api.call(method, path, _given(body))

    def result(self, text: str) -> None:
        """Print a result, to standard output."""
        print(text, file=self.out)

    def remark(self, text: str) -> None:
        """Print everything else, to standard error."""
        print(text, file=self.err)

    def rows(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], shown: Callable[[Row], Row] = lambda row: row
    ) -> None:
        """Print rows as JSON where `--json` asks for it, otherwise as a table that fits the terminal; `shown` makes a
        row of the table out of a row of the answer."""
        if self.arguments.json:
            self.result(json.dumps(rows, ensure_ascii=False, indent=2))
        elif rows:
            width = shutil.get_terminal_size().columns if self.out.isatty() else None
            self.out.write(table([shown(row) for row in rows], columns, width=width))
        else:
            self.remark("There are none.")

    def pages(
        self, path: str, query: Query, columns: Sequence[str], shown: Callable[[Row], Row] = lambda row: row
    ) -> None:
        """Print a page of the API's answer, or all with `--all`; with `--format` or `--output` export all of it."""
        given = query_of(self.arguments, query)
        if (form := exporting.format_of(self.arguments.format, self.arguments.output)) is not None:
            self._export(path, {**given, "format": form, **({"raw": "true"} if self.arguments.raw else {})}, form)
            return
        rows: list[dict[str, Any]] = []
        with self.api() as api:
            while True:
                page, cursor = api.page(path, given)
                rows += page
                if cursor is None or not getattr(self.arguments, "all", False):
                    break
                given["cursor"] = cursor
        self.rows(rows, columns, shown)
        if cursor is not None:
            self.remark(f"There are more: --cursor {cursor} shows the next page, --all every one.")

    def _export(self, path: str, given: Mapping[str, str], form: str) -> None:
        output: Path | None = self.arguments.output
        progress = exporting.progress_of(form, self.err)
        with self.api() as api:
            if output is not None:
                exporting.save(api, path, given, output, progress)
                self.remark(f"{output}: {progress.bytes:,} bytes")
            elif form == "parquet" and self.out.isatty():
                raise WrongUsage("Parquet is not for a terminal; say --output FILE")
            else:
                exporting.print_to(api, path, given, self.out, progress)

    def seconds(self, flag: str, value: str) -> int:
        """Return a flag's time as whole seconds. Raises WrongUsage."""
        return round(checked(flag, values.duration, value))


def _given(body: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in body.items() if value is not None}


def checked(flag: str, parse: Callable[[str], T], value: str) -> T:
    """Return a flag's value. Raises WrongUsage."""
    try:
        return parse(value)
    except ValueError as error:
        raise WrongUsage(f"{flag} {value!r}: {error}") from error


Argument = tuple[tuple[str, ...], dict[str, Any]]


def arg(*names: str, **how: Any) -> Argument:
    """An argument or a flag, as `ArgumentParser.add_argument` takes it."""
    return names, how


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command. `words` are what is typed; `run` gets the call and prints its result."""

    words: tuple[str, ...]
    about: str
    example: str
    run: Callable[[Context], None]
    arguments: Sequence[Argument]
    settings: Sequence[Setting[Any]]


def command(
    example: str,
    *arguments: Argument,
    words: int = 1,
    settings: Sequence[Setting[Any]] = config.ASKING,
) -> Callable[[Callable[[Context], None]], Command]:
    """Make a function a command: its docstring is the help, the first `words` of its example are what is typed."""

    def made(run: Callable[[Context], None]) -> Command:
        about = (run.__doc__ or "").rstrip(".")
        typed = tuple(example.split()[:words])
        return Command(
            words=typed,
            about=about[:1].lower() + about[1:],
            example=example,
            run=run,
            arguments=arguments,
            settings=settings,
        )

    return made


def rows_of(query: Query) -> tuple[Argument, ...]:
    """The flags of a list: each query parameter of the API, and how to print or export the answer."""
    pages = any(param.name == "cursor" for param in query.params)
    every = (arg("--all", action="store_true", help="follow to the last page"),) if pages else ()
    return (*flags_of(query), *every, JSON, *_EXPORT)


_EXPORT: Final = (
    arg("--format", choices=exporting.FORMATS, help="export every row, or the first --limit of them"),
    arg("--output", metavar="FILE", type=Path, help="export into a file; its name may say the format"),
    arg("--raw", action="store_true", help="in CSV: no apostrophe before what a spreadsheet would run as a formula"),
)
JSON: Final = arg("--json", action="store_true", help="for scripts: JSON")
