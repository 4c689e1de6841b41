"""PgBouncer in transaction mode may stand between receivers and PostgreSQL."""

import threading
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from pisync_receiver.store.postgres import PostgresStore
from tests.support.looped import open_looped
from tests.support.postgres import SERVER, empty, fresh_database, needs_postgres
from tests.support.stores.batches import BatchConformance
from tests.support.stores.made import NOON, batch, report, stored_seqs
from tests.support.stores.reports import ReportConformance
from tests.support.worker.pgbouncer import pgbouncer

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def behind() -> Iterator[tuple[str, str]]:
    """The same database behind PgBouncer and directly."""
    server = urlsplit(SERVER)
    host, user = server.hostname or "127.0.0.1", server.username or "postgres"
    with fresh_database() as direct, pgbouncer(host, server.port or 5432, user) as port:
        yield f"postgresql://{user}@127.0.0.1:{port}/{direct.rpartition('/')[2]}", direct


@pytest.fixture(scope="module")
def opened(behind: tuple[str, str]) -> Iterator[PostgresStore]:
    with closing(open_looped(behind[0])) as store:
        yield store


@pytest.fixture
def store(opened: PostgresStore, behind: tuple[str, str]) -> PostgresStore:
    empty(behind[1])
    return opened


class TestBatches(BatchConformance):
    pass


class TestReports(ReportConformance):
    pass


def test_more_writers_than_connections(store: PostgresStore) -> None:
    def write(number: int) -> None:
        for turn in range(20):
            seqs = range(turn * 10 + 1, turn * 10 + 11)
            store.write([batch(seqs, device=f"pibook-{number}"), report(NOON + turn, device=f"pibook-{number}")])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert stored_seqs(store, device=f"pibook-{number}") == list(range(1, 201))
