"""With every part on another server it is a store like any other."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from pisync_receiver.store.postgres import PostgresStore
from tests.support.looped import open_looped
from tests.support.postgres import empty
from tests.support.postgres_cluster import needs_cluster
from tests.support.stores.access import AccessConformance
from tests.support.stores.batches import BatchConformance
from tests.support.stores.clones import CloneConformance, OriginConformance
from tests.support.stores.finding import FindingConformance
from tests.support.stores.properties import PropertyConformance
from tests.support.stores.reports import ReportConformance
from tests.support.two_servers import two_servers

pytestmark = needs_cluster


@pytest.fixture(scope="module")
def opened() -> Iterator[PostgresStore]:
    with two_servers() as servers:
        here, _ = servers.create("elsewhere")
        for part in range(8):
            servers.move(here, part)
        with closing(open_looped(here)) as store:
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


class TestFinding(FindingConformance):
    pass


class TestAccess(AccessConformance):
    pass


class TestProperties(PropertyConformance):
    pass
