"""The named queries of `sql/*.sql`. Each begins with `-- name: …` and a line that says what it is for."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)\n(?:--.*\n)*", re.MULTILINE)


@cache
def queries(file: str) -> Mapping[str, str]:
    """SQL of `sql/<file>.sql` by name, read once."""
    parts = _NAME.split((Path(__file__).parent / "sql" / f"{file}.sql").read_text("utf-8"))
    return {name: sql.strip() for name, sql in zip(parts[1::2], parts[2::2], strict=True)}
