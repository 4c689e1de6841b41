"""What the receiver takes in and answers on PostgreSQL."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import psycopg
from psycopg import RawCursor

from benchmark import cloud, load, queries
from benchmark.lessons import MORNING_MS
from benchmark.measure import Bench, median, percentile
from benchmark.processes import receiver
from benchmark.report import Result, at_least, at_most, progress
from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import migrate
from pisync_receiver.store.postgres.rows import encode
from pisync_receiver.store.queries import queries as named

SERVER: Final = os.environ.get("PISYNC_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
"""A role on it may create databases."""

_COLUMNS: Final = (
    "device_id, stream, seq, type, learner_id, object_id, occurred_at, boot_id, boottime_ms, clock_synced, data, "
    "received_ms, best_ms, quality"
)
_numbers = itertools.count(1)

FILL_DEVICES: Final = """
INSERT INTO devices (device_id, last_contact_ms, consecutive_failures, total_failures, failing_since_ms, last_sync_ms,
                     last_success_ms, last_failure_ms)
SELECT 'pibook-' || lpad(n::text, 5, '0'), $2, failing, failing,
       CASE WHEN failing > 0 THEN $2 + 91 * 900000 + n * 7 END,
       $2 + 99 * 900000 + n * 7, $2 + 90 * 900000 + n * 7, CASE WHEN failing > 0 THEN $2 + 99 * 900000 + n * 7 END
FROM generate_series(0, $1::int - 1) AS n, LATERAL (SELECT CASE WHEN n % 5 = 0 THEN 9 ELSE 0 END AS failing) AS f
"""
FILL_REPORTS: Final = """
INSERT INTO sync_events (id, device_id, timestamp, at_ms, total_files_synced, total_errors, internet_speed, received_ms)
SELECT nextval('sync_event_ids'), 'pibook-' || lpad(n::text, 5, '0'), '2026-11-23T10:00:00.000Z',
       $2 + turn * 900000 + n * 7, turn, CASE WHEN n % 5 = 0 AND turn > 90 THEN 3 ELSE 0 END, 1.5,
       $2 + turn * 900000 + n * 7 + 500
FROM generate_series($3::int, $4::int) AS turn, generate_series(0, $1::int - 1) AS n
"""
"""The same histories that `queries.fill` stores through the store, in a few statements."""


@contextmanager
def database() -> Iterator[str]:
    """The URL of a migrated database, dropped at the end."""
    name = f"pisync_bench_{os.getpid()}_{next(_numbers)}"
    url = f"{SERVER.rpartition('/')[0]}/{name}"
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}".encode())
    try:
        migrate(PostgresUrl(conninfo=url))
        yield url
    finally:
        with psycopg.connect(SERVER, autocommit=True) as server:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def sync_events(bench: Bench) -> Iterator[Result]:
    """`POST /api/sync-event` beside the no-op route, on PostgreSQL."""
    folder = bench.place("postgres-sync-events")
    with database() as url, receiver(folder, database_url=url) as running, psycopg.connect(url) as asking:
        asking.autocommit = True

        def stored_by_now() -> int:
            (count,) = asking.execute("SELECT count(*) FROM sync_events").fetchone() or (0,)
            return int(count)

        for result in cloud.report_figures(bench, folder, running, stored_by_now):
            yield Result(**{**result.__dict__, "what": f"PostgreSQL: {result.what.strip()}"})


def batches(bench: Bench) -> Iterator[Result]:
    """`POST /api/events` beside a bare loop that sends the same rows in the same statement, a transaction each 500."""
    folder = bench.place("postgres-batches")
    taken, bare = [], []
    with database() as url, database() as other, receiver(folder, database_url=url) as running:
        tokens = running.enroll([f"pibox-{number}" for number in range(4)])
        each, seen = bench.pick(40, 20), 0
        for number in range(bench.pick(7, 3)):
            progress(f"batches on PostgreSQL: round {number + 1}")
            requests = [
                [cloud.batch_request(device, token, number * each + batch) for batch in range(each)]
                for device, token in tokens.items()
            ]
            one = load.batches(folder, port=running.port, per_connection=requests)
            rows = _new_rows(url, seen)
            seen += len(rows)
            if one.failed or len(rows) != each * cloud.BATCH * len(tokens):
                raise RuntimeError(f"{one.failed} batches failed; {len(rows)} rows are stored")
            taken.append(one.rate * cloud.BATCH)
            bare.append(_bare(other, rows, seen))
    value, yardstick = median(taken), median(bare)
    yield at_least(
        "PostgreSQL: batches of 500, gzip, 4 conn. | bare psycopg", f"{value:,.0f} events/s",
        f"{yardstick:,.0f} rows/s", value / yardstick, 0.60,
    )  # fmt: skip


def questions(bench: Bench) -> Iterator[Result]:
    """p99 of `repeated-failures` and `sync-history`, 100 times the devices beside the small fleet."""
    small, large = (1_000, 100_000) if not bench.quick else (100, 10_000)
    folders = {devices: bench.place(f"postgres-fleet-{devices}") for devices in (small, large)}
    with database() as few, database() as many:
        for devices, url in ((small, few), (large, many)):
            progress(f"queries on PostgreSQL: storing {devices * 100:,} sync events of {devices:,} devices")
            fill(url, devices)
        with receiver(folders[small], database_url=few) as one, receiver(folders[large], database_url=many) as other:
            for name, path in (
                ("repeated-failures", f"/api/sync-event/devices/repeated-failures?limit={queries.PAGE}"),
                ("sync-history", "/api/sync-event/device/{device}/sync-history"),
            ):
                progress(f"queries on PostgreSQL: {name}")
                took = queries.ask_in_turns({small: one, large: other}, path, times=bench.pick(2_000, 300))
                p99 = {devices: percentile(seconds, 99) * 1000 for devices, seconds in took.items()}
                yield at_most(
                    f"PostgreSQL: {name}, {large:,} devices, p99 | {small:,}", f"{p99[large]:.2f} ms",
                    f"{p99[small]:.2f} ms", p99[large] / p99[small], 2,
                )  # fmt: skip


def fill(url: str, devices: int) -> None:
    """A hundred sync events of each device, the last nine of every fifth one failures."""
    with closing(psycopg.connect(url, autocommit=True, cursor_factory=RawCursor)) as connection:
        connection.execute("SELECT make_months(to_timestamp($1::bigint / 1000), 2)", (MORNING_MS,))
        connection.execute(FILL_DEVICES, (devices, MORNING_MS))
        for first in range(0, queries.EVENTS_EACH, 10):
            connection.execute(FILL_REPORTS, (devices, MORNING_MS, first, first + 9))
        connection.execute("VACUUM ANALYZE")


def _new_rows(url: str, seen: int) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(f"SELECT {_COLUMNS} FROM events WHERE id > {seen} ORDER BY id".encode()).fetchall()


def _bare(url: str, rows: list[tuple[Any, ...]], base: int) -> float:
    """Rows a second."""
    statement = named("postgres", "intake")["insert_event"]
    with psycopg.connect(url, autocommit=True, cursor_factory=RawCursor, prepare_threshold=0) as connection:
        start = time.perf_counter()
        for first in range(0, len(rows), 500):
            group = [(-place, *row) for place, row in enumerate(rows[first : first + 500], 1)]
            connection.execute(statement, (encode(group), base + first))
        return len(rows) / (time.perf_counter() - start)


def available() -> bool:
    """Whether a server answers."""
    try:
        psycopg.connect(SERVER, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
