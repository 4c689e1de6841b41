"""The SQLite engine passes every conformance class."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_receiver.store.opening import open_store
from tests.conformance.access import DeviceConformance, EnrollmentConformance, TokenConformance
from tests.conformance.acts import ActConformance
from tests.conformance.audit import AuditConformance, TamperingConformance
from tests.conformance.erasure import ErasureConformance
from tests.conformance.events import EventConformance
from tests.conformance.fleet import FleetConformance
from tests.conformance.notices import NoticeConformance
from tests.conformance.properties import PropertyConformance
from tests.conformance.queries import QueryConformance
from tests.conformance.retention import RetentionConformance
from tests.conformance.sessions import SessionConformance
from tests.conformance.showing import ShowingConformance
from tests.conformance.sums import SumConformance, SumQueryConformance, schools  # noqa: F401 - a fixture
from tests.conformance.sync_events import SyncEventConformance
from tests.conformance.tables import KeyConformance, Tables
from tests.support.blocking import BlockingStore


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlockingStore]:
    opened = BlockingStore(lambda: open_store(tmp_path / "receiver.db", create=True))
    yield opened
    opened.close()


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    file = tmp_path / "receiver.db"
    return Tables(lambda: sqlite3.connect(file), placeholder="?", refusal=sqlite3.IntegrityError)


class TestEvents(EventConformance):
    pass


class TestSyncEvents(SyncEventConformance):
    pass


class TestTokens(TokenConformance):
    pass


class TestSessions(SessionConformance):
    pass


class TestEnrollment(EnrollmentConformance):
    pass


class TestDevices(DeviceConformance):
    pass


class TestActs(ActConformance):
    pass


class TestAudit(AuditConformance):
    pass


class TestTampering(TamperingConformance):
    pass


class TestFleet(FleetConformance):
    pass


class TestQueries(QueryConformance):
    pass


class TestRetention(RetentionConformance):
    pass


class TestErasure(ErasureConformance):
    pass


class TestSums(SumConformance):
    pass


class TestNotices(NoticeConformance):
    pass


class TestSumQueries(SumQueryConformance):
    pass


class TestKeys(KeyConformance):
    pass


class TestProperties(PropertyConformance):
    pass


class TestShowing(ShowingConformance):
    pass
