"""Named queries in `.sql` files. Each begins with `-- name: …` and a line that says what it is for."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)\n(?:--.*\n)*", re.MULTILINE)


@cache
def named_sql(file: Path) -> Mapping[str, str]:
    """The queries of one file by name, read once."""
    parts = _NAME.split(file.read_text("utf-8"))
    return {name: sql.strip() for name, sql in zip(parts[1::2], parts[2::2], strict=True)}
