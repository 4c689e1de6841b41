"""Shared SQL as PostgreSQL takes it."""

import pytest

from tests.support.postgres import needs_postgres

pytestmark = needs_postgres

dialect = pytest.importorskip("pisync_receiver.store.postgres.dialect")


@pytest.mark.parametrize(
    ("shared", "translated"),
    [
        ("site = :site OR :site IS NULL", "site = %(site)s OR %(site)s IS NULL"),
        ("(at_ms, id) < (:at,:id)", "(at_ms, id) < (%(at)s,%(id)s)"),
        ("first::bigint", "first::bigint"),
        (":first::bigint", "%(first)s::bigint"),
        ("kind = ':kind' AND a = :a", "kind = ':kind' AND a = %(a)s"),
        ("x = 'it''s :no' AND b = :b", "x = 'it''s :no' AND b = %(b)s"),
        ("a LIKE '5%' AND 7 % 2 = :odd", "a LIKE '5%%' AND 7 %% 2 = %(odd)s"),
        ("seq IN (SELECT value FROM json_each(:seqs)) AND a", "seq = ANY(%(seqs)s) AND a"),
        ("FROM json_each(:seqs) AS wanted, gaps", "FROM unnest(%(seqs)s) AS wanted (value), gaps"),
        ("FROM events NOT INDEXED\nWHERE", "FROM events\nWHERE"),
        ("FROM events INDEXED BY events_by_device WHERE id = :id", "FROM events WHERE id = %(id)s"),
    ],
)
def test_translation(shared: str, translated: str) -> None:
    assert dialect.translate(shared) == translated
