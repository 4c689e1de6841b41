"""The shared SQL (`store/sql`) as PostgreSQL takes it.

It is written for SQLite; these differences are replaced once, when a file is loaded, and no value is ever part of it.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pisync_common.queries import load_queries

_LITERAL: Final = r"('(?:[^']|'')*')"
_LIST: Final = re.compile(r"IN \(SELECT value FROM json_each\(:(\w+)\)\)")
_TABLE: Final = re.compile(r"json_each\(:(\w+)\) AS (\w+)")
_HINT: Final = re.compile(r" (?:NOT INDEXED|INDEXED BY \w+)\b")
_PARAMETER: Final = re.compile(rf"{_LITERAL}|(?<![:\w]):([A-Za-z_]\w*)")


def translate(sql: str) -> str:
    """Name parameters as the driver does (`:site` -> `%(site)s`), leaving casts and text literals alone; make lists
    arrays (`= ANY(...)`, `unnest(...)`); drop the names of indexes."""
    sql = _LIST.sub(r"= ANY(:\1)", sql)
    sql = _TABLE.sub(r"unnest(:\1) AS \2 (value)", sql)
    sql = _HINT.sub("", sql).replace("%", "%%")
    return _PARAMETER.sub(lambda found: found[1] or f"%({found[2]})s", sql)


def load_shared(file: Path) -> Mapping[str, str]:
    """Return the translated SQL of `file` by name."""
    return {name: translate(sql) for name, sql in load_queries(file).items()}
