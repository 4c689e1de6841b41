"""PostgreSQL for tests: a database of one's own on the server that answers, and none left behind."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import psycopg
import pytest

from tests.support.services import NOTHING_LEFT_OUT

SERVER: Final = os.environ.get("PISYNC_TEST_POSTGRES", "postgresql://postgres@127.0.0.1:5432/postgres")
"""A role on it may create databases."""

_numbers = itertools.count(1)


@cache
def answers() -> bool:
    """Whether there is a server to test with. Raises if there has to be."""
    try:
        psycopg.connect(SERVER, connect_timeout=2).close()
    except psycopg.OperationalError:
        if NOTHING_LEFT_OUT:
            raise
        return False
    return True


needs_postgres = pytest.mark.skipif(
    not answers(), reason="no PostgreSQL answers; name one with PISYNC_TEST_POSTGRES to run these tests"
)


@contextmanager
def fresh_database(template: str | None = None) -> Iterator[str]:
    """The URL of an empty database (or a copy of another), dropped at the end whoever is still connected."""
    name = f"pisync_test_{os.getpid()}_{next(_numbers)}"
    source = "" if template is None else f" TEMPLATE {template.rpartition('/')[2]}"
    with psycopg.connect(SERVER, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}{source}".encode())
    try:
        yield f"{SERVER.rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(SERVER, autocommit=True) as server:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def run(url: str, statement: str) -> list[Any]:
    """Carry it out by itself; its rows, if it gives any."""
    with psycopg.connect(url, autocommit=True) as connection:
        found = connection.execute(statement.encode())
        return found.fetchall() if found.description else []


def empty(url: str) -> None:
    """Take every row out of a migrated database, as if it had just been made."""
    with psycopg.connect(url) as connection:
        tables = connection.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p') AND NOT c.relispartition "
            "AND c.relname NOT IN ('migrations', 'arrival_counter', 'pulse')"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f"DELETE FROM {table}".encode())
        connection.execute("UPDATE arrival_counter SET last = setval('event_ids', 0)")
