"""The PostgreSQL store holds what every store has to hold, whether a thread writes it or an event loop."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from pisync_receiver.store.postgres import PostgresStore
from tests.support.looped import Open, open_blocking, open_looped
from tests.support.postgres import empty, fresh_database, needs_postgres
from tests.support.stores.access import AccessConformance
from tests.support.stores.batches import BatchConformance
from tests.support.stores.clones import CloneConformance, OriginConformance
from tests.support.stores.finding import FindingConformance
from tests.support.stores.properties import PropertyConformance
from tests.support.stores.reports import ReportConformance

pytestmark = needs_postgres


@pytest.fixture(scope="module", params=[open_blocking, open_looped], ids=["thread", "loop"])
def opened(request: pytest.FixtureRequest) -> Iterator[PostgresStore]:
    open_store: Open = request.param
    with fresh_database() as url, closing(open_store(url)) as store:
        yield store


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
