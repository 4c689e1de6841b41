"""One exchange with the server: statements that are sent together and answered together.

They go as one text, with the values written into it by the driver. Its pipeline would keep them apart, and ask the
operating system twice for each statement whether it may go on; every time this thread gives up the interpreter, which
the event loop then keeps for a while.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from psycopg import sql

from pisync_receiver.store.postgres.connection import Connection
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

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._asked: list[tuple[str, Answer]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._asked:
            self._run()

    def ask(self, statement: str, values: Sequence[object] = ()) -> Answer:
        """Add a statement; its places are $1 and so on."""
        written = [sql.Literal(value).as_string(self._connection) for value in values]
        text = _PLACE.sub(lambda place: written[int(place[1]) - 1], statement)
        answer = Answer()
        self._asked.append((text.rstrip().removesuffix(";"), answer))
        return answer

    def _run(self) -> None:
        cursor = self._connection.execute("\n;\n".join(text for text, _ in self._asked).encode())
        for _, answer in self._asked:
            answer.rows = cursor.fetchall() if cursor.description else ()
            answer.count = cursor.rowcount
            cursor.nextset()
