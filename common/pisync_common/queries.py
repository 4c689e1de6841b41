"""Named SQL: each query of a file begins with `-- name: …` and a comment that says what it is for."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)\n(?:--.*\n)*", re.MULTILINE)


@cache
def load_queries(file: Path) -> Mapping[str, str]:
    """Return the SQL of `file` by name, read once."""
    parts = _NAME.split(file.read_text("utf-8"))
    return {name: sql.strip() for name, sql in zip(parts[1::2], parts[2::2], strict=True)}
