"""Reading values out of a file that may be broken: what is not what it should be is damage, never a stray TypeError."""

import json
import sqlite3
from typing import Any


class BrokenOutbox(sqlite3.DatabaseError):
    """The file contradicts itself: malformed, though SQLite did not notice."""

    def __init__(self, what: str) -> None:
        super().__init__(f"malformed outbox: {what}")


def number(value: object) -> int:
    if type(value) is not int:
        raise BrokenOutbox(f"a number is a {type(value).__name__}")
    return value


def text(value: object) -> str:
    if type(value) is not str:
        raise BrokenOutbox(f"a text is a {type(value).__name__}")
    return value


def fraction(value: object) -> float:
    if type(value) not in (int, float):
        raise BrokenOutbox(f"a number is a {type(value).__name__}")
    return float(value)  # type: ignore[arg-type]


def counts(value: object) -> dict[str, int]:
    """A JSON object of numbers."""
    try:
        found: Any = json.loads(text(value))
    except (ValueError, RecursionError) as error:
        raise BrokenOutbox("counts are not JSON") from error
    if not isinstance(found, dict):
        raise BrokenOutbox("counts are not an object")
    return {name: number(count) for name, count in found.items()}
