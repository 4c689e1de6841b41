"""A database that keeps no statistics is served, with one warning that says what to do."""

import logging
from collections.abc import Iterator

import pytest

from pisync_receiver.store.opening import open_store
from pisync_receiver.store.postgres import PostgresUrl
from tests.postgres.cluster import Cluster, cluster, needs_cluster
from tests.support.blocking import BlockingStore
from tests.support.postgres import run

pytestmark = needs_cluster


def warnings(url: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        BlockingStore(lambda: open_store(PostgresUrl(conninfo=url), create=True)).close()
    return [record.message.partition(": ")[2] for record in caplog.records]


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    with cluster("autovacuum = on") as running:
        yield running


def test_large_table_without_statistics_is_named(server: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    url = server.create("large")
    assert warnings(url, caplog) == []
    run(url, "ALTER TABLE gaps SET (autovacuum_enabled = false)")
    run(url, "INSERT INTO gaps SELECT 'd', repeat('s', 500), n, n FROM generate_series(1, 20000) AS n")
    (warning,) = warnings(url, caplog)
    assert "no statistics are kept of gaps" in warning
    assert "VACUUM ANALYZE" in warning
    run(url, "ALTER TABLE gaps RESET (autovacuum_enabled)")
    run(url, "VACUUM ANALYZE gaps")
    assert warnings(url, caplog) == []


def test_server_without_autovacuum_gets_a_warning(server: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    server.configure("autovacuum = off")
    server.restart("fast")
    (warning,) = warnings(server.create("off"), caplog)
    assert "autovacuum is off" in warning
    assert "postgresql.conf" in warning
