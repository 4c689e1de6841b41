"""The SQLite store holds what every store has to hold."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_receiver.store.sqlite import SqliteStore, open_store
from tests.support.stores.access import AccessConformance
from tests.support.stores.batches import BatchConformance
from tests.support.stores.clones import CloneConformance, OriginConformance
from tests.support.stores.finding import FindingConformance
from tests.support.stores.properties import PropertyConformance
from tests.support.stores.reports import ReportConformance


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = open_store(tmp_path / "receiver.db", create=True)
    yield opened
    opened.close()


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
