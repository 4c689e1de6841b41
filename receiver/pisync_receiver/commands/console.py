"""Rows of an answer as a table that a person reads in a terminal."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

NOTHING: Final = "-"
_GAP: Final = 2
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_MINUTE: Final = len("2026-11-23T10:00")
_NARROWEST: Final = 6
"""No column of a table that does not fit is cut below this many characters."""


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, width: int | None = None) -> str:
    """Return `columns` of each row under their names, numbers to the right, a line a row.

    The widest columns are cut until a line fits `width`; None cuts none.
    """
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    heads = [column.replace("_", " ") for column in columns]
    widths = [max(len(line[index]) for line in [heads, *cells]) for index in range(len(columns))]
    numeric = [all(_is_number(row.get(column)) for row in rows) and bool(rows) for column in columns]
    while width is not None and sum(widths) + _GAP * (len(widths) - 1) > width and max(widths) > _NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return "".join(_line(line, widths, numeric) + "\n" for line in [heads, *cells])


def to_the_minute(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose times end with the minute, so that more columns fit a terminal."""
    return {
        name: f"{value[:_MINUTE]}Z" if isinstance(value, str) and _TIME.fullmatch(value) else value
        for name, value in row.items()
    }


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = (
        _cut(cell, width).rjust(width) if right else _cut(cell, width).ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    )
    return (" " * _GAP).join(padded).rstrip()


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"


def _cell(value: object) -> str:
    match value:
        case None | "":
            return NOTHING
        case bool():
            return "yes" if value else "no"
        case Mapping():
            return " ".join(f"{_cell(key)}={_cell(part)}" for key, part in value.items()) or NOTHING
        case list() | tuple():
            return " ".join(_cell(part) for part in value) or NOTHING
        case _:
            # Escape sequences in a value must not reach the terminal.
            return "".join(char if char.isprintable() else "?" for char in str(value))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
