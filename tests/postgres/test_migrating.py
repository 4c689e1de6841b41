"""However many bring one database up at once, its schema is made once."""

import subprocess
import sys
from contextlib import closing

import psycopg
import pytest

from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres import open_store
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.stores.made import batch, send

pytestmark = needs_postgres

AT_ONCE = 4


def migrate(url: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "pisync_receiver", "migrate", "--database-url", url]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("at_once", [1, AT_ONCE])
def test_all_succeed_and_one_does_it(at_once: int) -> None:
    with fresh_database() as url:
        outputs = []
        for process in [migrate(url) for _ in range(at_once)]:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            outputs.append(out)
        assert len([out for out in outputs if "0001_initial" in out]) == 1
        with psycopg.connect(url) as connection:
            again, _ = migrate(url).communicate(timeout=60)
            assert "nothing to do" in again
            rows = connection.execute(
                "SELECT number, count(*) FROM migrations GROUP BY number ORDER BY number"
            ).fetchall()
        assert rows == [(number, 1) for number in range(1, len(rows) + 1)]
        with closing(open_store(PostgresUrl(conninfo=url))) as store:
            assert send(store, batch([1])).stored == 1
