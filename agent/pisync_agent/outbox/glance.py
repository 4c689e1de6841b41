"""The outbox's numbers for `pisync status`, which must be there at once: read by plain SQL, with nothing imported
that the other readers need. `reader.read_state` says the same (a test compares them)."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pisync_agent.errors import StoreUnusable
from pisync_agent.outbox.queries import queries

_SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"


def glance(database: str) -> dict[str, Any]:
    """Stream, numbers, files set aside and notes of the outbox at this path. Raises StoreUnusable."""
    try:
        with _opened(database) as connection:
            return _look(connection)
    except (sqlite3.Error, UnicodeDecodeError, TypeError, ValueError) as error:
        raise StoreUnusable(
            f"{database} cannot be read ({error}): nothing is lost. Check who may read it; the service "
            "(`pisync run`) salvages a broken file when it starts"
        ) from error


@contextmanager
def _opened(database: str) -> Iterator[sqlite3.Connection]:
    quoted = "".join(c if c in _SAFE else "".join(f"%{byte:02X}" for byte in c.encode()) for c in database)
    connection = sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
    try:
        connection.execute("BEGIN")  # one moment for all that is asked
        yield connection
    finally:
        connection.close()


def _look(connection: sqlite3.Connection) -> dict[str, Any]:
    def row(query: str, *parameters: object) -> Any:
        return connection.execute(queries()[query], parameters).fetchone()

    def pragma(name: str) -> int:
        return int(connection.execute(f"PRAGMA {name}").fetchone()[0])

    stream, delivered, watermark, trimmed, *_ = row("state")
    last = (row("last_event") or (trimmed,))[0]
    return {
        "stream": str(stream),
        "last_seq": int(last),
        "delivered": int(delivered),
        "watermark": int(watermark),
        "waiting": max(0, last - delivered),
        "dead": int(row("count_dead")[0]),
        "kept_from": int((row("first_event") or (trimmed + 1,))[0]),
        "bytes_used": (pragma("page_count") - pragma("freelist_count")) * pragma("page_size"),
        "salvaged": [
            {"at_ms": at_ms, "reason": reason, "carried": carried, "damaged": damaged, "file": file}
            for at_ms, reason, carried, damaged, file in connection.execute(queries()["salvaged"])
        ],
        "reports_waiting": int(row("count_reports")[0]),
        "notes": dict(connection.execute(queries()["all_notes"])),
    }
