"""Named SQL: each query of a file begins with `-- name: …` and a comment that says what it is for.

`{name}` in a query stands for the SQL of that name in the folder `parts` beside the file: an expression that several
queries share is written once.
"""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)\n(?:--.*\n)*", re.MULTILINE)
_PART = re.compile(r"\{(\w+)\}")


@cache
def load_queries(file: Path) -> Mapping[str, str]:
    """Return the SQL of `file` by name, read once."""
    parts = {name: sql for part in sorted(file.parent.glob("parts/*.sql")) for name, sql in _split(part).items()}
    return {name: _expand(sql, parts) for name, sql in _split(file).items()}


def _split(file: Path) -> Mapping[str, str]:
    texts = _NAME.split(file.read_text("utf-8"))
    return {name: sql.strip() for name, sql in zip(texts[1::2], texts[2::2], strict=True)}


def _expand(sql: str, parts: Mapping[str, str]) -> str:
    while found := _PART.search(sql):
        sql = sql.replace(found[0], parts[found[1]])
    return sql
