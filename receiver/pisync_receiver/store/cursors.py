"""Cursors: where a page ended, as text that a caller hands back unread."""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from pisync_receiver.domain.records import Page
from pisync_receiver.errors import BadCursor

Row = TypeVar("Row")
_LARGEST: Final = 2**63 - 1
_DIGITS: Final = 18
"""Of an event's id: what fits a database's integer."""


def encode(*place: int | str | None) -> str:
    text = json.dumps(place, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str, *kinds: type[int] | type[str]) -> list[Any]:
    """Return the place that a cursor names, if it has parts of these kinds; raise BadCursor."""
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
        if isinstance(place, list) and [type(part) for part in place] == list(kinds) and all(map(_fits, place)):
            return place
    except (ValueError, RecursionError):
        pass
    raise bad_cursor()


def event_id(cursor: str | None) -> int:
    """Return the id that a cursor of events names; raise BadCursor."""
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdigit()) or len(cursor) > _DIGITS:
        raise bad_cursor()
    return int(cursor)


def page(rows: Sequence[Row], limit: int, place: Callable[[Row], str]) -> Page[Row]:
    """Return a page of `limit` out of up to `limit` + 1 rows."""
    kept = list(rows[:limit])
    return Page(rows=kept, next=place(kept[-1]) if len(rows) > limit and kept else None)


def bad_cursor() -> BadCursor:
    return BadCursor("this query did not give this cursor; start again without it")


def _fits(part: int | str) -> bool:
    """Whether the database can take it; raises UnicodeEncodeError (a ValueError) for text that is none."""
    if isinstance(part, int):
        return -_LARGEST <= part <= _LARGEST
    return "\0" not in part and (bool(part.encode()) or part == "")
