"""The PostgreSQL store holds what every store has to hold."""

from collections.abc import Iterator

import pytest

from pisync_receiver.store.postgres import PostgresStore, PostgresUrl, open_store
from tests.support.postgres import empty, fresh_database, needs_postgres
from tests.support.stores.access import AccessConformance
from tests.support.stores.batches import BatchConformance
from tests.support.stores.clones import CloneConformance, OriginConformance
from tests.support.stores.finding import FindingConformance
from tests.support.stores.properties import PropertyConformance
from tests.support.stores.reports import ReportConformance

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def opened() -> Iterator[PostgresStore]:
    with fresh_database() as url:
        store = open_store(PostgresUrl(conninfo=url), create=True)
        yield store
        store.close()


@pytest.fixture
def store(opened: PostgresStore) -> PostgresStore:
    empty(opened.url.conninfo)
    return opened


class TestBatches(BatchConformance):
    pass


class TestClones(CloneConformance):
    pass


class TestOrigins(OriginConformance):
    pass


class TestReports(ReportConformance):
    pass


class TestAccess(AccessConformance):
    pass


class TestFinding(FindingConformance):
    pass


class TestProperties(PropertyConformance):
    pass
