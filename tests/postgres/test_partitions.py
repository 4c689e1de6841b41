"""Everything that grows is kept by device, so that a part of the devices can live on another server."""

import re
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pisync_receiver.store.postgres import PostgresUrl, migrate
from pisync_receiver.store.queries import queries
from tests.support.postgres import fresh_database, needs_postgres

pytestmark = needs_postgres

SMALL = {
    "arrival_counter", "arrivals", "enrollments", "marks", "migrations", "notices", "positions", "pulse", "tokens",
}  # fmt: skip
"""Tables that are not kept by device: a few rows, or a few for each device."""
BY_DEVICE = {
    "boots", "carried", "crossings", "devices", "events", "gaps", "origins", "rejected", "streams", "sync_events",
}  # fmt: skip

_SOURCES = re.compile(r"\b(?:FROM|JOIN|UPDATE|INTO|USING)\s+(\w+)(?:\s+AS\s+(\w+)|\s+(?!ON\b|SET\b|WHERE\b)([a-z]))?")


@pytest.fixture(scope="module")
def catalogue() -> Iterator["psycopg.Connection[tuple[Any, ...]]"]:
    with fresh_database() as url:
        migrate(PostgresUrl(conninfo=url))
        with psycopg.connect(url) as connection:
            yield connection


def test_every_table_is_partitioned_by_device_or_small(catalogue: "psycopg.Connection[tuple[Any, ...]]") -> None:
    rows = catalogue.execute(
        "SELECT c.relname, pg_get_partkeydef(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition"
    ).fetchall()
    assert {name for name, key in rows if key == "HASH (device_id)"} == BY_DEVICE
    assert {name for name, key in rows if key is None} == SMALL


def test_every_primary_key_and_unique_index_contains_the_device(
    catalogue: "psycopg.Connection[tuple[Any, ...]]",
) -> None:
    rows = catalogue.execute(
        "SELECT t.relname, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid "
        "JOIN pg_namespace n ON n.oid = t.relnamespace WHERE i.indisunique AND n.nspname = 'public'"
    ).fetchall()
    keyed = [(table, definition) for table, definition in rows if table not in SMALL]
    assert {f"{parent}_{part}" for parent in BY_DEVICE for part in range(8)} <= {table for table, _ in keyed}
    assert [definition for _, definition in keyed if "(device_id" not in definition] == []


def test_no_parent_has_a_key_of_its_own_so_that_foreign_tables_fit_below_it(
    catalogue: "psycopg.Connection[tuple[Any, ...]]",
) -> None:
    rows = catalogue.execute(
        "SELECT t.relname FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid "
        "WHERE i.indisunique AND t.relname = ANY(%s)",
        (sorted(BY_DEVICE),),
    ).fetchall()
    assert rows == []


@pytest.mark.parametrize("file", ["intake", "queries", "worker"])
def test_every_join_is_on_the_device(file: str) -> None:
    bad = []
    for name, sql in queries("postgres", file).items():
        sources = [(table, one or other or table) for table, one, other in _SOURCES.findall(sql)]
        aliases = [alias for table, alias in sources if table in BY_DEVICE]
        for alias in aliases[1:]:
            joined = rf"\b{alias}\.device_id = \w+\.device_id|\b\w+\.device_id = {alias}\.device_id"
            alone = rf"\b{alias}\.device_id = (?:\$1|%\(device\)s|r\.a0|wanted\.device_id|seen\.device_id)"
            if not re.search(joined, sql) and not re.search(alone, sql):
                bad.append((name, alias))
    assert bad == []


def test_months_are_made_ahead_and_again_without_harm(catalogue: "psycopg.Connection[tuple[Any, ...]]") -> None:
    def months() -> set[str]:
        rows = catalogue.execute("SELECT relname FROM pg_class WHERE relname ~ '^events_0_[0-9]+$'").fetchall()
        return {name for (name,) in rows}

    catalogue.execute("SELECT make_months('2030-11-15T12:00:00Z', 3)")
    before = months()
    assert {"events_0_203011", "events_0_203012", "events_0_203101"} <= before
    catalogue.execute("SELECT make_months('2030-11-15T12:00:00Z', 3)")
    assert months() == before


def test_a_month_that_began_in_the_rest_stays_there(catalogue: "psycopg.Connection[tuple[Any, ...]]") -> None:
    insert = (
        "INSERT INTO sync_events (device_id, id, timestamp, at_ms, total_files_synced, total_errors, internet_speed, "
        "received_ms) VALUES ('pibook-1', 1, '', 0, 0, 0, 0, extract(epoch FROM timestamptz '2031-05-05Z') * 1000)"
    )
    catalogue.execute(insert)
    catalogue.execute("SELECT make_months('2031-05-01Z', 2)")
    (count,) = catalogue.execute("SELECT count(*) FROM sync_events").fetchone() or (0,)
    (table,) = catalogue.execute("SELECT tableoid::regclass::text FROM sync_events").fetchone() or ("",)
    assert (count, table.endswith("_rest")) == (1, True)


def test_both_engines_answer_the_same_questions() -> None:
    assert queries("sqlite", "queries").keys() == queries("postgres", "queries").keys()
