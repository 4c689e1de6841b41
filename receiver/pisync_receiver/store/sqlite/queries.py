"""The named queries of `sql/*.sql`."""

from collections.abc import Mapping
from pathlib import Path

from pisync_receiver.store.named_sql import named_sql


def queries(file: str) -> Mapping[str, str]:
    """SQL of `sql/<file>.sql` by name, read once."""
    return named_sql(Path(__file__).parent / "sql" / f"{file}.sql")
