"""Rows of an answer as a table that a person reads in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

NOTHING: Final = "-"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """`columns` of each row under their names; numbers to the right. One line a row, ends with a newline."""
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    heads = [column.replace("_", " ") for column in columns]
    widths = [max(len(line[index]) for line in [heads, *cells]) for index in range(len(columns))]
    numeric = [all(_is_number(row.get(column)) for row in rows) and bool(rows) for column in columns]
    lines = [_line(heads, widths, numeric), *(_line(line, widths, numeric) for line in cells)]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    padded = (
        cell.rjust(width) if right else cell.ljust(width)
        for cell, width, right in zip(cells, widths, numeric, strict=True)
    )
    return "  ".join(padded).rstrip()


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
