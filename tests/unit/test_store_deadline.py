"""A reader's query that finds no end is given up, and keeps nothing from devices."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from pisync_receiver.errors import QueryTooLong
from pisync_receiver.http.responses import as_problem
from pisync_receiver.store.sqlite import store as module
from pisync_receiver.store.sqlite.store import READERS, SqliteStore
from tests.support.blocking import BlockingStore, send, sync
from tests.support.submissions import NOON, batch, sync_event

ENDLESS = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BlockingStore]:
    sql = {**module.load_sql(), "tokens": ENDLESS}
    monkeypatch.setattr(module, "load_sql", lambda: sql)

    async def opening() -> SqliteStore:
        opened = module.open_store(tmp_path / "receiver.db", create=True)
        opened._query_s = 0.5
        return opened

    opened = BlockingStore(opening)
    yield opened
    opened.close()


def test_endless_query_is_given_up(store: BlockingStore) -> None:
    with pytest.raises(QueryTooLong) as raised:
        store.tokens()
    problem = as_problem(raised.value)
    assert (problem.status, problem.problem_code) == (503, "query_too_long")
    assert "ask for less" in problem.detail
    send(store, batch([1]))
    assert store.device("pibook-1") is not None


def test_endless_queries_keep_nothing_from_devices(store: BlockingStore) -> None:
    async def together() -> list[object]:
        endless = [asyncio.create_task(store.store.tokens()) for _ in range(3 * READERS)]
        await asyncio.sleep(0)
        outcomes = await store.store.write([batch([1]), sync_event(NOON)])
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        await store.store.ready()
        assert await store.store.tokens_by_hash(["unknown"]) == []
        assert sum(task.done() for task in endless) <= READERS  # the others wait, and are not begun late
        return list(await asyncio.gather(*endless, return_exceptions=True))

    assert {type(outcome) for outcome in store.run(together())} == {QueryTooLong}
    sync(store, sync_event(NOON + 1))
