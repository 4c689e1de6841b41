"""The schema in PostgreSQL's catalogue: what Citus needs (see docs/citus.md), and the keys that hold the promises."""

import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

import pisync_receiver
from pisync_common.queries import load_queries
from pisync_receiver.domain import rows
from pisync_receiver.domain.submissions import CodeCreate, Enroll, SyncEvent, TokenRevoke
from pisync_receiver.store.postgres import store as postgres_store
from pisync_receiver.store.postgres.store import load_sql
from pisync_receiver.store.sqlite import store as sqlite_store
from tests.support.postgres import fresh_database, needs_postgres, on_a_loop, opened, run, send, sync, written
from tests.support.submissions import DAY, HOUR, MINUTE, NOON, batch, event, invalid, sync_event

pytestmark = needs_postgres

REFERENCE_TABLES = {"arrival_counter", "arrivals", "erased", "pulse", "sites", "sums"}
"""Small tables, which Citus copies to every node."""
LOCAL_TABLES = {
    "audit", "enrollments", "migrations", "notes", "notices", "positions", "secrets", "sum_additions", "tokens",
    "transitions",
}  # fmt: skip
"""Small tables that stay on the coordinator."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    @on_a_loop
    async def make() -> None:
        async with opened(url):
            pass

    with fresh_database() as url:
        make()
        yield url


def distributed_tables(url: str) -> set[str]:
    tables = run(url, "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
    return {name for (name,) in tables} - REFERENCE_TABLES - LOCAL_TABLES


def test_every_unique_key_of_a_distributed_table_begins_with_device_id(database: str) -> None:
    keys = run(
        database,
        "SELECT t.relname, i.relname, a.attname FROM pg_index x "
        "JOIN pg_class t ON t.oid = x.indrelid JOIN pg_class i ON i.oid = x.indexrelid "
        "JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = x.indkey[0] "
        "WHERE x.indisunique AND t.relnamespace = 'public'::regnamespace",
    )
    distributed = distributed_tables(database)
    first = {(table, index): column for table, index, column in keys if table in distributed}
    assert {table for table, _ in first} == distributed
    assert set(first.values()) == {"device_id"}


def test_no_table_has_partitions_foreign_keys_or_triggers(database: str) -> None:
    assert run(database, "SELECT relname FROM pg_class WHERE relkind = 'p' OR relispartition") == []
    assert run(database, "SELECT conname FROM pg_constraint WHERE contype = 'f'") == []
    triggers = run(database, "SELECT DISTINCT relname FROM pg_trigger JOIN pg_class c ON c.oid = tgrelid")
    assert triggers == [("audit",)]  # a local table, on the coordinator


def test_every_join_of_distributed_tables_is_on_device_id() -> None:
    with_reference_table = " LEFT JOIN sites AS s ON s.site = d.site"
    on_the_coordinator = "JOIN transitions"
    statements = {name: sql.decode().replace(with_reference_table, "") for name, sql in load_sql().items()}
    joins = {name: sql for name, sql in statements.items() if re.search(r"\b(JOIN|USING|LATERAL)\b", sql)}
    assert set(joins) >= {"find_streams", "gaps_wanted", "close_gaps", "totals_since", "gaps"}
    for name, sql in joins.items():
        assert "device_id = " in sql or on_the_coordinator in sql, name


def test_every_statement_is_used() -> None:
    source = "".join(file.read_text() for file in Path(pisync_receiver.__file__).parent.rglob("*.py"))
    assert [name for name in load_sql() if f'"{name}"' not in source] == []


def test_engines_have_their_own_version_of_the_same_queries() -> None:
    own = load_queries(Path(postgres_store.__file__).with_name("sql") / "queries.sql")
    assert own.keys() == load_queries(Path(sqlite_store.__file__).with_name("sql") / "queries.sql").keys()


@pytest.mark.parametrize(
    ("table", "row", "before"),
    [
        ("devices", rows.Device, []),
        ("streams", rows.Stream, []),
        ("events", rows.StoredEvent, ["id"]),
        ("event_keys", rows.EventKey, []),
        ("carried", rows.Carried, []),
        ("rejected", rows.Rejected, []),
        ("gaps", rows.Gap, []),
        ("sync_events", rows.StoredSyncEvent, []),
        ("tokens", rows.Token, []),
        ("enrollments", rows.EnrollmentCode, []),
    ],
)
def test_columns_are_the_fields_of_the_row_in_order(database: str, table: str, row: type, before: list[str]) -> None:
    query = f"SELECT attname FROM pg_attribute WHERE attrelid = '{table}'::regclass AND attnum > 0 ORDER BY attnum"
    assert [name for (name,) in run(database, query)] == [*before, *row.__struct_fields__]  # type: ignore[attr-defined]


def test_documentation_names_the_statement_for_every_table(database: str) -> None:
    text = (ROOT / "docs" / "citus.md").read_text()
    wanted = {f"SELECT create_reference_table('{table}');" for table in REFERENCE_TABLES}
    wanted.add("SELECT create_distributed_table('devices', 'device_id');")
    for table in distributed_tables(database) - {"devices"}:
        wanted.add(f"SELECT create_distributed_table('{table}', 'device_id', colocate_with => 'devices');")
    assert set(re.findall(r"SELECT create_(?:reference|distributed)_table\(.*\);", text)) == wanted
    for table in LOCAL_TABLES:
        assert f"`{table}`" in text


@on_a_loop
async def test_intake_scans_no_table() -> None:
    """Nor does the planner want to, before the first ANALYZE. (A scan would also cost enough to be compiled.)"""
    with fresh_database() as url:
        async with opened(url):
            before = scans(url)
        async with opened(url) as store:
            await written(store, CodeCreate(code_hash="code", at_ms=NOON, expires_ms=NOON + HOUR))
            wish = Enroll(code_hash="code", device_id="d-1", fallback_device_id="", token_hash="t-1", at_ms=NOON)
            enrolled = await written(store, wish)
            await written(store, TokenRevoke(token_id=enrolled.token.id, at_ms=NOON))
            await send(store, batch([1, 2, event(9, event_id="a", origin=("old", 3)), invalid(20)]))
            await send(store, batch([2, event(2, note="other"), 5, 7, 12, invalid(20)]))
            for minute, failed in ((1, True), (3, True), (2, False)):
                await sync(store, sync_event(NOON + minute * MINUTE, failed=failed))
            retained = await store.retain(NOON + 2 * DAY, dry_run=False)
            assert (retained.events, retained.sync_events) == (6, 3)
            await store.ready()
        assert scans(url) == before


@on_a_loop
async def test_intake_reads_no_more_rows_after_a_long_history() -> None:
    """A group reads as much of a device with a long past as of a new device."""
    read = {}
    for history in (10, 3_000):
        with fresh_database() as url:
            async with opened(url) as store:
                for first in range(0, history, 500):
                    await store.write(_sync_events(range(first, min(first + 500, history))))
                for first in range(1, history, 500):
                    seqs = range(first, min(first + 500, history))
                    await send(store, batch([event(2 * seq, event_id=f"id-{seq}") for seq in seqs]))
            run(url, "ANALYZE")  # as autovacuum does within a minute
            before = rows_read(url)
            async with opened(url) as store:
                await store.write(_sync_events(range(history, history + 100)))
                await send(store, batch([event(3, event_id="new"), event(4, event_id="id-2")]))
            read[history] = rows_read(url) - before
    assert read[3_000] <= read[10] + 120, "a receipt names up to 100 missing ranges"


def _sync_events(numbers: range) -> list[SyncEvent]:
    return [sync_event(NOON + number, failed=True, key=f"key-{number}") for number in numbers]


def rows_read(url: str) -> int:
    """How many entries of indexes were read, by connections that are closed."""
    return int(run(url, "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes")[0][0])


def scans(url: str) -> dict[str, int]:
    """How often each table was scanned, by connections that are closed."""
    return dict(run(url, "SELECT relname, seq_scan FROM pg_stat_user_tables WHERE relname <> 'migrations'"))


def test_database_refuses_a_second_event_under_one_key(database: str) -> None:
    event = (
        "INSERT INTO events (id, device_id, stream, seq, type, occurred_at, clock_synced, received_ms, best_ms, "
        "quality, content) VALUES ({}, 'd', 's', 1, 'a.b', '', false, 0, 0, 0, '')"
    )
    run(database, event.format(1))
    with pytest.raises(psycopg.errors.UniqueViolation):
        run(database, event.format(2))
    sync_event = (
        "INSERT INTO sync_events (device_id, id, timestamp, at_ms, total_files_synced, total_errors, internet_speed, "
        "idempotency_key, received_ms) VALUES ('d', {}, '', 0, 0, 0, 0, 'k', 0)"
    )
    run(database, sync_event.format(1))
    with pytest.raises(psycopg.errors.UniqueViolation):
        run(database, sync_event.format(2))
