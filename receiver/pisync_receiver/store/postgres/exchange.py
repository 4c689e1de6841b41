"""One exchange with the server: statements that are sent together and answered together.

They go as one text, with the values written into it and quoted by the driver. Its pipeline would keep them apart, and
ask the operating system twice for each statement whether it may go on. Its adapters for any type of value would take a
third of a writer's time.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Final, Self

from psycopg import DataError
from psycopg.pq import Escaping

from pisync_receiver.store.postgres.connection import Link
from pisync_receiver.store.writing.tables import Row

_PLACE: Final = re.compile(r"\$(\d+)")


@dataclass(slots=True)
class Answer:
    """What a statement gave; there when its exchange has ended."""

    rows: Sequence[Row] = ()
    count: int = 0
    """How many rows it gave, or changed."""


class Exchange:
    """In a `with` block: what was asked in it goes to the server at its end.

    Raises what the server says of the first statement that failed; none after it was carried out.
    """

    def __init__(self, connection: Link) -> None:
        self._connection = connection
        self._escape = Escaping(connection.pgconn).escape_literal
        self._asked: list[tuple[bytes, Answer]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._asked:
            self._run()

    def ask(self, statement: str, values: Sequence[object] = ()) -> Answer:
        """Add a statement; its places are $1 and so on, with a cast where the context says no type.

        A value is an int, a text, None, or a list of these. Raises TypeError for any other, DataError for a NUL.
        """
        written = [_literal(value, self._escape) for value in values]
        first, others = _pieces(statement)
        answer = Answer()
        self._asked.append((first + b"".join(written[place] + text for place, text in others), answer))
        return answer

    def _run(self) -> None:
        cursor = self._connection.execute(b"\n;\n".join(text for text, _ in self._asked))
        for _, answer in self._asked:
            answer.rows = () if cursor.rownumber is None else cursor.fetchall()
            answer.count = cursor.rowcount
            cursor.nextset()


@cache
def _pieces(statement: str) -> tuple[bytes, list[tuple[int, bytes]]]:
    """The text up to the first place; then each place, counted from 0, with the text that follows it."""
    first, *others = _PLACE.split(statement.rstrip().removesuffix(";"))
    after = zip(others[::2], others[1::2], strict=True)
    return first.encode(), [(int(place) - 1, text.encode()) for place, text in after]


def _literal(value: object, escape: Callable[[bytes], bytes]) -> bytes:
    """A value as it stands in a statement. Whatever could end a quotation is quoted by the driver."""
    match value:
        case None:
            return b"NULL"
        case str():
            return _quoted(value, escape)
        case list():
            return _quoted("{" + ",".join(map(_element, value)) + "}", escape)
        case _:
            return b" %d" % _whole(value)  # a space, because two minus signs would be a comment


def _element(value: object) -> str:
    """A value in the text of an array."""
    match value:
        case None:
            return "NULL"
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case _:
            return str(_whole(value))


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"a {type(value).__name__} has no place in a statement; a row's values go as JSON")
    return value


def _quoted(text: str, escape: Callable[[bytes], bytes]) -> bytes:
    if "\0" in text:
        raise DataError("PostgreSQL's text holds no NUL")
    return escape(text.encode())
