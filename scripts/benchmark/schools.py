"""A fleet of schools in a receiver's database, as months of intake would leave it: straight SQL, for its size.

Every tenth school is silent as a whole, every fifth device fails, every fiftieth stream lacks something. Devices
have a hundred sync events each, over a month, and the daily sums that go with them.
"""

import sqlite3
from contextlib import closing
from typing import Any, Final

import psycopg

from pisync_common.times import format_ms

EACH: Final = 100
"""Sync events of a device."""
CLASS: Final = 33
"""Devices of a school."""
FAILING: Final = 5
"""Every fifth device keeps failing."""
DAY_MS: Final = 86_400_000
TYPES: Final = ("video.watched", "note.taken", "assignment.completed")

# Each is one statement for both engines; {devices} and {now} are whole numbers of our own.
_FILL: Final = (
    "CREATE TEMPORARY TABLE ns AS WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < {last}) "
    "SELECT i FROM n",
    """
INSERT INTO devices (device_id, site, label, agent, enrolled_ms, last_contact_ms, last_sync_ms, last_success_ms,
    streak_after_ms, last_failure_ms, consecutive_failures, total_failures, failing_since_ms, last_errors, conflicts,
    streams, copies)
SELECT {name}, 'School ' || (i / {class}), 'Seat ' || (i % {class}), 'pisync/0.2.0', {now} - 90 * {day}, contact,
    contact, CASE WHEN fails THEN contact - 9 * {step} ELSE contact END,
    CASE WHEN fails THEN contact - 9 * {step} ELSE contact END, CASE WHEN fails THEN contact END,
    CASE WHEN fails THEN 9 ELSE 0 END, CASE WHEN fails THEN 9 ELSE 0 END,
    CASE WHEN fails THEN contact - 8 * {step} END, CASE WHEN fails THEN '{{"dns":3}}' END, 0, 1, 0
FROM (SELECT i, i % {failing} = 0 AS fails,
             {now} - CASE WHEN (i / {class}) % 10 = 0 THEN 12 ELSE 0 END * {day} - (i % 1000) * 60000 AS contact
      FROM ns) AS d
""",
    """
INSERT INTO streams (device_id, stream, watermark, highest, stored, carried, rejected, conflicts, first_ms, last_ms,
    best_ms, boots)
SELECT {name}, 'stream-1', CASE WHEN i % 50 = 0 THEN 80 ELSE 100 END, 100, CASE WHEN i % 50 = 0 THEN 87 ELSE 100 END,
    0, 0, 0, {now} - 30 * {day}, {now}, {now}, '[]'
FROM ns
""",
    "INSERT INTO gaps (device_id, stream, first, last) SELECT {name}, 'stream-1', 81, 93 FROM ns WHERE i % 50 = 0",
    """
INSERT INTO sync_events (id, device_id, site, timestamp, at_ms, total_files_synced, total_errors, internet_speed,
    errors, received_ms)
SELECT turn * {devices} + i + 1, {name}, 'School ' || (i / {class}), text, at_ms, 7,
    CASE WHEN i % {failing} = 0 AND turn >= 91 THEN 3 ELSE 0 END, 1.5,
    CASE WHEN i % {failing} = 0 AND turn >= 91 THEN '{{"dns":3}}' END, at_ms
FROM turns CROSS JOIN ns
""",
    """
INSERT INTO sums (what, site, day, name, object, count)
SELECT what, site, day, CASE what WHEN 'error' THEN 'dns' WHEN 'speed' THEN '2000' ELSE '' END, '', {class}
FROM (SELECT DISTINCT 'School ' || (i / {class}) AS site FROM ns) AS sites CROSS JOIN
     (SELECT DISTINCT at_ms / {day} AS day FROM turns) AS days CROSS JOIN
     (SELECT 'runs' AS what UNION ALL SELECT 'failed' UNION ALL SELECT 'files' UNION ALL SELECT 'error'
      UNION ALL SELECT 'speed') AS kinds
""",
    """
INSERT INTO sums (what, site, day, name, object, count)
SELECT 'type', site, day, name, '', 100
FROM (SELECT DISTINCT 'School ' || (i / {class}) AS site FROM ns) AS sites CROSS JOIN
     (SELECT DISTINCT at_ms / {day} AS day FROM turns) AS days CROSS JOIN types
""",
)


def fill(url: str, devices: int, *, now_ms: int) -> None:
    """Store a fleet whose newest contact is `now_ms`."""
    step = 30 * DAY_MS // EACH
    name = "'pibook-' || substr(CAST(1000000 + i AS TEXT), 2)"
    large = {name: f"CAST({value} AS BIGINT)" for name, value in (("now", now_ms), ("day", DAY_MS), ("step", step))}
    known = {"last": devices - 1, "devices": devices, "class": CLASS, "failing": FAILING, **large}
    turns = [(turn, at, format_ms(at)) for turn in range(EACH) for at in [now_ms - (EACH - 1 - turn) * step]]
    statements = [statement.format(name=name, **known) for statement in _FILL]
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            _run(connection, statements, turns, placeholder="?")
            connection.commit()
            connection.execute("ANALYZE")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return
    with psycopg.connect(url) as postgres:
        _run(postgres.cursor(), statements, turns, placeholder="%s")
    with psycopg.connect(url, autocommit=True) as postgres:
        postgres.execute("VACUUM ANALYZE")


def _run(connection: Any, statements: list[str], turns: list[tuple[int, int, str]], *, placeholder: str) -> None:
    connection.execute("CREATE TEMPORARY TABLE turns (turn bigint, at_ms bigint, text text)")
    connection.executemany(f"INSERT INTO turns VALUES ({', '.join([placeholder] * 3)})", turns)
    connection.execute("CREATE TEMPORARY TABLE types (name text)")
    connection.executemany(f"INSERT INTO types VALUES ({placeholder})", [(name,) for name in TYPES])
    for statement in statements:
        connection.execute(statement)


def device_name(number: int) -> str:
    return f"pibook-{number:06}"
