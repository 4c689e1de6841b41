"""Whatever a value says, it arrives as it is and changes nothing of its statement."""

from collections.abc import Iterator

import pytest
from psycopg import DataError, errors

from pisync_receiver.store.address import PostgresUrl
from pisync_receiver.store.postgres.connection import Connection, connect
from pisync_receiver.store.postgres.exchange import Exchange
from pisync_receiver.store.writing.tables import Row
from tests.support.postgres import SERVER, needs_postgres

pytestmark = needs_postgres

HOSTILE = [
    "",
    "'; DROP TABLE devices; --",
    "\\",
    "\\'",
    "it\\'s",
    '"',
    '\\"',
    "{a,b}",
    "a,b",
    "NULL",
    "null",
    " leading and trailing ",
    "$1 $2",
    "%s %(name)s",
    "E'\\x41'",
    "line\r\nline\ttab",
    "ħéłło, 世界 \U0001f600",
    "\u2028\u00a0",
    "x" * 100_000,
]


@pytest.fixture(scope="module", params=["on", "off"])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """Whether a backslash in a plain text is one is the server's choice."""
    with connect(PostgresUrl(conninfo=SERVER)) as opened:
        opened.execute(f"SET standard_conforming_strings = {request.param}".encode())
        yield opened


def asked(connection: Connection, statement: str, *values: object) -> Row:
    with Exchange(connection) as exchange:
        before = exchange.ask("SELECT 'before'")
        answer = exchange.ask(statement, values)
        after = exchange.ask("SELECT 'after';")
    assert (list(before.rows), list(after.rows)) == ([("before",)], [("after",)])
    (row,) = answer.rows
    return row


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:20]))
def test_a_text_arrives_as_it_is_alone_and_in_a_list(connection: Connection, text: str) -> None:
    given = [text, None, text]
    assert asked(connection, "SELECT $1::text, $2::text[], $1::text", text, given) == (text, given, text)


def test_numbers_lists_of_them_and_nothing(connection: Connection) -> None:
    numbers = [0, -1, 2**63 - 1, -(2**63), None]
    assert asked(connection, "SELECT 5 -$1, $2::bigint[], $3::text, $4::text[]", -7, numbers, None, []) == (
        12,
        numbers,
        None,
        [],
    )


@pytest.mark.parametrize("value", [1.5, True, b"bytes", [1.5], [True], [["nested"]], ("tuple",), {}])
def test_what_has_no_place_in_a_statement_is_refused(connection: Connection, value: object) -> None:
    with pytest.raises(TypeError, match="has no place in a statement"), Exchange(connection) as exchange:
        exchange.ask("SELECT $1::text", [value])


@pytest.mark.parametrize("value", ["a\0b", ["a\0b"]])
def test_a_nul_is_refused_and_cuts_nothing_off(connection: Connection, value: object) -> None:
    with pytest.raises(DataError, match="NUL"), Exchange(connection) as exchange:
        exchange.ask("SELECT $1::text", [value])


def test_of_statements_that_are_sent_together_none_is_carried_out_after_one_that_failed(connection: Connection) -> None:
    connection.execute("CREATE TEMPORARY TABLE IF NOT EXISTS kept (n bigint)")
    exchange = Exchange(connection)
    exchange.ask("BEGIN")
    exchange.ask("INSERT INTO kept VALUES ($1)", [1])
    exchange.ask("SELECT 1 / $1", [0])
    exchange.ask("COMMIT")
    with pytest.raises(errors.DivisionByZero), exchange:
        pass
    connection.execute("ROLLBACK")
    assert connection.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_answers_say_how_many_rows_were_given_or_changed(connection: Connection) -> None:
    connection.execute("CREATE TEMPORARY TABLE IF NOT EXISTS counted (n bigint)")
    with Exchange(connection) as exchange:
        put = exchange.ask("INSERT INTO counted SELECT * FROM generate_series(1, $1)", [3])
        found = exchange.ask("SELECT n FROM counted WHERE n <= $1 ORDER BY n LIMIT 2", [3])
        exchange.ask("TRUNCATE counted")
    assert (put.count, list(put.rows), found.count, list(found.rows)) == (3, [], 2, [(1,), (2,)])
