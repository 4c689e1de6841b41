"""The PostgreSQL engine passes every conformance class."""

from collections.abc import Iterator

import psycopg
import pytest

from pisync_receiver.errors import QueryTooLong
from pisync_receiver.store.opening import open_store
from pisync_receiver.store.postgres import PostgresStore, PostgresUrl
from pisync_receiver.store.postgres.store import encode_rows, load_sql
from tests.conformance.access import DeviceConformance, EnrollmentConformance, TokenConformance
from tests.conformance.acts import ActConformance
from tests.conformance.audit import AuditConformance
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
from tests.support.postgres import empty, fresh_database, needs_postgres

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def database() -> Iterator[tuple[str, BlockingStore]]:
    with fresh_database() as url:
        store = BlockingStore(lambda: open_store(PostgresUrl(conninfo=url), create=True))
        yield url, store
        store.close()


@pytest.fixture
def store(database: tuple[str, BlockingStore]) -> BlockingStore:
    url, store = database
    empty(url)
    return store


@pytest.fixture
def tables(database: tuple[str, BlockingStore]) -> Tables:
    url, _ = database
    return Tables(lambda: psycopg.connect(url), placeholder="%s", refusal=psycopg.errors.UniqueViolation)


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


@pytest.mark.parametrize(
    ("text", "stored"),
    [("a\0b", "a\ufffdb"), ("\0\0", "\ufffd\ufffd"), ("\\u0000", "\\u0000"), ("\\\0", "\\\ufffd")],
)
def test_nul_is_replaced_and_its_escape_is_not(database: tuple[str, BlockingStore], text: str, stored: str) -> None:
    query = "SELECT r.text FROM json_to_recordset(%s::json) AS r (text text)"
    with psycopg.connect(database[0]) as connection:
        assert connection.execute(query, [encode_rows([{"text": text}])]).fetchall() == [(stored,)]


def test_endless_query_is_given_up(database: tuple[str, BlockingStore], monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = database
    engine = store.store
    assert isinstance(engine, PostgresStore)
    monkeypatch.setattr(engine, "_query_s", 0.2)
    monkeypatch.setattr(engine, "_sql", {**load_sql(), "tokens": b"SELECT pg_sleep(600)"})
    with pytest.raises(QueryTooLong):
        store.tokens()
    assert store.codes() == []
    assert store.tokens_by_hash(["unknown"]) == []
