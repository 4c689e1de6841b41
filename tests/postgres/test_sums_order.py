"""Groups add to daily sums in the order of their key, so that two receivers never wait for each other in a circle."""

import threading
from collections.abc import Iterator

import psycopg
import pytest

from pisync_receiver.domain.rows import Sums
from pisync_receiver.store.postgres import PostgresUrl, migrate
from pisync_receiver.store.postgres.store import encode_rows, load_sql
from tests.support.postgres import fresh_database, needs_postgres, on_a_loop, run
from tests.support.processes import wait_until

pytestmark = needs_postgres

SITES = ["", "Kisumu", "Nakuru", "a", "é"]
"""As "C" sorts them: by bytes."""
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@on_a_loop
async def make(url: str) -> None:
    await migrate(PostgresUrl(conninfo=url))


@pytest.fixture
def url() -> Iterator[str]:
    with fresh_database() as url:
        make(url)
        with psycopg.connect(url) as connection:
            for site in SITES:
                connection.execute("INSERT INTO sums VALUES ('run', 1, %s, 'runs', '', 1)", [site])
        yield url


def test_sums_are_locked_in_the_order_of_their_key(url: str) -> None:
    rows = encode_rows([Sums("run", 1, site, "runs", {"": 1}) for site in reversed(SITES)])

    def add() -> None:
        with psycopg.connect(url, cursor_factory=psycopg.RawCursor) as adding:
            adding.execute(load_sql()["add_sums"], (rows,))

    thread = threading.Thread(target=add)
    with psycopg.connect(url) as holder, psycopg.connect(url, autocommit=True) as watcher:
        holder.execute("SELECT 1 FROM sums WHERE site = 'Nakuru' FOR UPDATE")
        thread.start()
        wait_until(lambda: watcher.execute(WAITING).fetchone() == (1,), "the group waits for the row that is held")
        free = watcher.execute("SELECT site FROM sums ORDER BY site FOR UPDATE SKIP LOCKED").fetchall()
    thread.join()
    assert [site for (site,) in free] == SITES[3:], "what comes before the row is locked, nothing after it"
    assert run(url, "SELECT sum(count) FROM sums") == [(10,)]
