"""The PostgreSQL engine: what a request costs does not depend on the past."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from pisync_receiver.store.opening import open_store
from pisync_receiver.store.postgres import PostgresStore, PostgresUrl
from tests.conformance.costs import SIZES, CostConformance, Costs, history
from tests.support.blocking import BlockingStore
from tests.support.postgres import fresh_database, needs_postgres, run

pytestmark = needs_postgres


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[int, Costs]]:
    with ExitStack() as stack:
        found = {}
        for size in SIZES:
            url = stack.enter_context(fresh_database())
            store = BlockingStore(lambda url=url: open_store(PostgresUrl(conninfo=url), create=True))  # type: ignore[misc]
            stack.callback(store.close)
            history(store, size)
            run(url, "ANALYZE")
            found[size] = counted(store)
        yield found


def counted(store: BlockingStore) -> Costs:
    """Count what the store exchanges with the server."""
    engine = store.store
    assert isinstance(engine, PostgresStore)
    counts = [0, 0, 0, 0]
    exchange, select, begin = engine._exchange, engine._select, engine._begin

    def count(statements: int, found: list[list[Any]]) -> list[list[Any]]:
        counts[0] += statements
        counts[1] += sum(map(len, found))
        return found

    async def exchanging(connection: Any, statements: Any) -> list[list[Any]]:
        return count(len(statements), await exchange(connection, statements))

    async def selecting(wanted: Any) -> list[list[Any]]:
        return count(len(wanted), await select(wanted))

    def beginning(**given: Any) -> Any:
        counts[3] += 1
        return begin(**given)

    engine._exchange, engine._select, engine._begin = exchanging, selecting, beginning  # type: ignore[method-assign]
    return Costs(store, counts)


class TestCosts(CostConformance):
    pass
