"""The previous version's database, brought up by `migrate`: nothing is lost, answers are as before, sums are there.

`previous/` holds a database's rows with schema 0001, and what the previous version's API said of them.
"""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
import pytest

from pisync_receiver.app import AppSettings, Receiver
from pisync_receiver.store.address import PostgresUrl, address
from pisync_receiver.store.migrations import load
from pisync_receiver.store.opening import open_store
from pisync_receiver.store.postgres import schema as postgres
from pisync_receiver.store.postgres.connection import connect as connect_postgres
from pisync_receiver.store.sqlite import schema as sqlite
from tests.conformance.sums import recount
from tests.conformance.tables import Tables
from tests.support.postgres import fresh_database, needs_postgres
from tests.support.submissions import HOUR, NOON

PREVIOUS: Final = Path(__file__).with_name("previous")


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The previous version's SQLite database."""
    path = tmp_path / "receiver.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        sqlite.migrate(connection, path, now_ms=NOON, migrations=load(sqlite.FOLDER)[:1])
        connection.executescript((PREVIOUS / "receiver.sql").read_text())
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(sqlite_url: str) -> Iterator[str]:
    """The same rows in PostgreSQL."""

    async def make(url: str) -> None:
        place = PostgresUrl(conninfo=url)
        async with connect_postgres(place) as connection:
            await postgres.migrate(connection, place, now_ms=NOON, migrations=load(postgres.FOLDER)[:1])

    path = sqlite_url.removeprefix("sqlite:///")
    with fresh_database() as url, closing(sqlite3.connect(path)) as source:
        asyncio.run(make(url))
        with psycopg.connect(url) as target:
            for table, (columns, rows) in rows_of(source).items():
                places = [f"%s{'::integer::boolean' if name == 'clock_synced' else ''}" for name in columns]
                sql = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(places)})"
                target.cursor().executemany(sql.encode(), rows)
            target.execute("UPDATE arrival_counter SET last = (SELECT max(id) FROM events)")
        yield url


def rows_of(source: sqlite3.Connection) -> dict[str, tuple[list[str], list[Any]]]:
    tables = [name for (name,) in source.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()]
    found = {}
    for table in tables:
        if table not in ("migrations", "pulse", "sqlite_sequence"):
            cursor = source.execute(f"SELECT * FROM {table}")
            found[table] = ([name for name, *_ in cursor.description], cursor.fetchall())
    return found


@pytest.mark.parametrize("engine", ["sqlite", pytest.param("postgres", marks=needs_postgres)])
def test_previous_database_is_migrated(engine: str, request: pytest.FixtureRequest) -> None:
    url: str = request.getfixturevalue(f"{engine}_url")
    connect: Callable[[], Any] = lambda: psycopg.connect(url)  # noqa: E731
    if engine == "sqlite":
        connect = lambda: sqlite3.connect(url.removeprefix("sqlite:///"))  # noqa: E731
    tables = Tables(connect, placeholder="?", refusal=Exception)
    environ = os.environ | {"PISYNC_RECEIVER_DATABASE_URL": url}
    command = [sys.executable, "-m", "pisync_receiver", "migrate"]
    for said, warns in (("applied: 0002_window\n", True), ("the schema is this program's own; nothing to do\n", False)):
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        assert done.stdout == said
        assert ("can take minutes" in done.stderr) == warns
    sums = tables.sums()
    assert sums == recount(tables)
    assert {what for what, *_ in sums} == {"run", "speed", "error", "delay", "type", "object"}
    before = json.loads((PREVIOUS / "answers.json").read_text())
    assert asyncio.run(answers(url, before)) == before


async def answers(url: str, before: dict[str, Any]) -> dict[str, Any]:
    """Ask what the previous version was asked; return what it knew to say of each answer."""
    store = await open_store(address(url))
    receiver = Receiver.create(store, AppSettings(auth=False, cache_ttl_s=0), now_ms=lambda: NOON + HOUR)
    transport = httpx.ASGITransport(receiver.app)
    async with receiver.running(), httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
        found = {path: known((await client.get(path)).json(), said) for path, said in before.items()}
    await store.aclose()
    return found


def known(answer: Any, before: Any) -> Any:
    """Leave out what the earlier answer did not have."""
    if isinstance(answer, list) and isinstance(before, list) and len(answer) == len(before):
        return [known(*pair) for pair in zip(answer, before, strict=True)]
    if isinstance(answer, dict) and isinstance(before, dict):
        return {name: known(answer[name], before[name]) for name in before if name in answer}
    return answer
