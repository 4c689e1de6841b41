"""Cursors: where a page ended, as text that a caller hands back unread."""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from pisync_receiver.errors import BadCursor
from pisync_receiver.store.types import Page

Row = TypeVar("Row")
_LARGEST: Final = 2**63 - 1


def encode(*place: int | str | None) -> str:
    text = json.dumps(place, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str, *kinds: type[int] | type[str]) -> list[Any]:
    """The place a cursor names, if it has parts of these kinds; raise BadCursor."""
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
        if isinstance(place, list) and [type(part) for part in place] == list(kinds) and all(map(_fits, place)):
            return place
    except (ValueError, RecursionError):
        pass
    raise BadCursor("this cursor is not one that this query gave; start again without it")


def page(rows: Sequence[Row], limit: int, place: Callable[[Row], str]) -> Page[Row]:
    """A page of `limit` out of up to `limit` + 1 rows."""
    kept = tuple(rows[:limit])
    return Page(rows=kept, next=place(kept[-1]) if len(rows) > limit and kept else None)


def _fits(part: int | str) -> bool:
    """Whether the database can take it; raises UnicodeEncodeError (a ValueError) for text that is none."""
    return -_LARGEST <= part <= _LARGEST if isinstance(part, int) else bool(part.encode()) or part == ""
