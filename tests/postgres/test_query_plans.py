"""Query plans: no query reads a history, or all devices, from end to end."""

from collections.abc import Iterator

import psycopg
import pytest

from pisync_receiver.store.postgres import PostgresUrl, migrate
from pisync_receiver.store.postgres.store import load_sql
from tests.support.postgres import fresh_database, needs_postgres, on_a_loop

pytestmark = needs_postgres

ROWS = (
    "INSERT INTO devices (device_id, site, consecutive_failures, total_failures, failing_since_ms) "
    "SELECT 'd' || n, 'site' || n % 50, n % 7, n % 11, n FROM generate_series(1, 2000) AS n",
    "INSERT INTO events (id, device_id, stream, seq, type, site, learner_id, occurred_at, clock_synced, received_ms, "
    "best_ms, quality, content) "
    "SELECT n, 'd' || n % 50, 's', n, 'a.b', 'site' || n % 5, 'l' || n % 50, '', true, n, n, 0, '' "
    "FROM generate_series(1, 40000) AS n",
    "INSERT INTO sync_events (device_id, id, timestamp, at_ms, total_files_synced, total_errors, internet_speed, "
    "received_ms) SELECT 'd' || n % 10, n, '', n, 0, (n % 20 = 0)::integer, 0, n FROM generate_series(1, 40000) AS n",
    "INSERT INTO rejected SELECT 'd' || n % 2000, 's', n, '', 'a', '', '', n FROM generate_series(1, 20000) AS n",
    "INSERT INTO gaps SELECT 'd' || n % 10, 's', n, n FROM generate_series(1, 20000) AS n",
    "INSERT INTO event_keys SELECT 'd' || n % 50, n::text::bytea, 'd' || n % 50, 's', n "
    "FROM generate_series(1, 20000) AS n",
    "INSERT INTO carried SELECT 'd' || n % 50, 't', n, '', 'd' || n % 50, 's', n FROM generate_series(1, 20000) AS n",
    "INSERT INTO erased SELECT n::text, n::text, '', 0, 0, 0, 0 FROM generate_series(1, 20000) AS n",
    "INSERT INTO streams SELECT 'd' || n, 's', 3, 3, 3, 0, 0, 0, 0, 0, 0, '' FROM generate_series(1, 2000) AS n",
    "INSERT INTO transitions (device_id, before, state, at_ms) SELECT 'd' || n % 2000, 'well', 'failing', n "
    "FROM generate_series(1, 20000) AS n",
    "ANALYZE",
)
VALUES = {
    "device": "d7", "learner": "l7", "stream": None, "type": None, "object": None, "site": None, "sites": None,
    "since": 0, "until": 2**62,
    "occurred_since": 0, "occurred_until": 2**62, "longest": 9,
    "after": 0, "last": 2**62, "at": 2**62, "id": 2**62, "failed": None,
    "least": 3, "failing_since": 0, "started": 39_000, "mode": "consecutive", "received": -1,
    "seq": -1, "content": b"", "silent_since": None, "seqs": [7, 2007], "first": 7, "before": 100, "hour": 0,
    "ids": [1, 2, 3], "newest": 100, "upto": 2**62, "home": None, "best": 2**62, "places": '[["d7", "s", 7]]',
    "now": 2**62, "silent_after": 0, "alarm": 3, "state": None, "search": None, "search_title": None,
    "search_upper": None, "incomplete": None, "cloned": None, "without_site": None, "sort": "failures", "name": "",
    "number": 0, "devices": ["d7"], "each": 20,
    "count": 100, "limit": 100,
}  # fmt: skip


@pytest.fixture(scope="module")
def connection() -> Iterator[psycopg.Connection]:
    @on_a_loop
    async def make() -> None:
        await migrate(PostgresUrl(conninfo=url))

    with fresh_database() as url:
        make()
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in ROWS:
                connection.execute(statement.encode())
            yield connection


def plan(connection: psycopg.Connection, query: str, **values: object) -> str:
    found = connection.execute(b"EXPLAIN " + load_sql()[query], VALUES | values)
    return "\n".join(step for (step,) in found)


@pytest.mark.parametrize(
    ("query", "index", "values"),
    [
        ("history", "sync_events_by_device", {}),
        ("history", "sync_events_failed", {"failed": 1}),
        ("streaks", "devices_by_streak", {"after": ""}),
        ("totals", "devices_by_failures", {"after": ""}),
        ("totals_since", "sync_events_failed_by_time", {"after": "", "since": 39_000}),
        ("risen", "sync_events_by_arrival", {"after": ""}),
        ("newest_arrival", "sync_events_by_arrival", {}),
        ("events", "events_by_arrival", {}),
        ("events", "events_by_arrival", {"sites": ["site1", "site2"]}),
        ("events_of_learner", "events_by_learner", {"device": None}),
        ("events_of_device", "events_by_device", {}),
        ("rejected", "rejected_by_arrival", {"stream": ""}),
        ("devices", "devices_pkey", {"after": "d7"}),
        ("devices", "devices_by_site", {"after": "d7", "site": "site7"}),
        ("devices_risen", "sync_events_by_arrival", {"after": ""}),
        ("restless_sites", "sync_events_by_arrival", {}),
        ("device_shown", "devices_pkey", {}),
        ("site_counts", "devices_by_site", {"site": "site7"}),
        ("troubled_devices", "devices_by_site", {"site": "site7"}),
        ("missing_ranges", "gaps_pkey", {}),
        ("net_changes", "transitions_by_time", {"since": 19_900}),
        ("versions", "events_pkey", {"stream": "s"}),
        ("neighbours", "events_pkey", {"stream": "s"}),
        ("failures_after", "sync_events_failed", {"at": 0}),
        ("old_events", "events_by_arrival", {}),
        ("old_sync_events", "sync_events_by_arrival", {}),
        ("count_old", "sync_events_by_arrival", {}),
        ("delete_sync_events", "sync_events_by_arrival", {}),
        ("gaps_wanted", "gaps_pkey", {"stream": "s"}),
        ("delete_events", "events_by_arrival", {}),
        ("timeline", "events_by_learner", {}),
        ("homes_of_learner", "events_by_learner", {}),
        ("events_to_erase", "events_by_learner", {}),
        ("rejected_naming", "rejected_pkey", {"device": "", "stream": ""}),
        ("delete_keys_at", "event_keys_by_place", {}),
        ("delete_copies_of", "carried_by_place", {}),
        ("erased_of", "erased_by_id", {"ids": ["a", "b"]}),
    ],
)
def test_query_uses_its_index(
    connection: psycopg.Connection, query: str, index: str, values: dict[str, object]
) -> None:
    steps = plan(connection, query, **values)
    assert index in steps
    for table in ("events", "sync_events", "rejected", "gaps"):
        assert f"Seq Scan on {table}" not in steps


@pytest.mark.parametrize(
    ("query", "device"),
    [("history", "d7"), ("events", None), ("events_of_learner", None), ("events_of_device", "d7")],
)
def test_page_needs_no_sorting(connection: psycopg.Connection, query: str, device: str | None) -> None:
    assert "Sort" not in plan(connection, query, device=device)


def test_page_of_devices_reads_the_streams_of_those_alone(connection: psycopg.Connection) -> None:
    for query in ("devices", "device_shown", "devices_ranked"):
        assert "Seq Scan on streams" not in plan(connection, query, after="d7")


def test_devices_are_grouped_without_sorting(connection: psycopg.Connection) -> None:
    """PostgreSQL would sort all devices if it were to group them by their state."""
    assert "Sort" not in plan(connection, "site_counts")


def test_first_event_of_a_boot_reads_none_of_another(connection: psycopg.Connection) -> None:
    """The newest event bounds the search, whatever the statistics say."""
    steps = plan(connection, "earlier", device="d7", stream="s", below=9_999, boot="b")
    assert "(seq < $0)" in steps or "(seq < (InitPlan" in steps


def test_daily_sums_are_read_by_their_key(connection: psycopg.Connection) -> None:
    connection.execute(
        "INSERT INTO sums SELECT 'type', n % 400, 'site' || n / 400, 'a.b', '', 1 FROM generate_series(1, 40000) AS n"
    )
    connection.execute("ANALYZE sums")
    asked = {"what": "type", "first": 370, "last": 399, "days": [*range(370, 400)], "type": None, "about": None}
    asked |= {"after": "", "name": "", "object": "", "day": 399, "total": 2**53}
    asked |= {"by_day": 1, "by_site": 0, "by_type": 1, "by_object": 0}
    for query, site in (("sums", None), ("sums_of_site", "site7"), ("sums_grouped", None), ("sums_grouped", "site7")):
        steps = plan(connection, query, **asked, site=site)
        assert "sums_pkey" in steps, query
        assert "Seq Scan on sums" not in steps, query
