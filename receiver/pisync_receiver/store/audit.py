"""The audit log: read it, and add to it within a transaction of `Store.act`."""

from collections.abc import Sequence
from typing import Any, Final, cast

from msgspec.structs import asdict

from pisync_receiver.domain.audit import AuditEntry, AuditRecord
from pisync_receiver.domain.records import Page
from pisync_receiver.domain.times import shown
from pisync_receiver.store.cursors import decode, encode, page
from pisync_receiver.store.running import Query, QueryRunner, Row

APPEND: Final = "append_audit"
"""No statement of the database: the engine takes its values for an entry, which it numbers and chains."""

_LARGEST: Final = 2**63 - 1


def audit_statement(entry: AuditEntry) -> Query:
    """Return a statement for `Store.act` that adds an entry to the audit log."""
    return APPEND, asdict(entry)


def entries_of(statements: Sequence[Query]) -> list[AuditEntry]:
    """Return the entries among the statements of `Store.act`."""
    return [AuditEntry(**cast(dict[str, Any], values)) for name, values in statements if name == APPEND]


class AuditQueries(QueryRunner):
    """Queries of the audit log."""

    async def audit(
        self,
        *,
        since_ms: int | None = None,
        until_ms: int | None = None,
        act: str | None = None,
        actor: str | None = None,
        target: str | None = None,
        oldest_first: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[AuditRecord]:
        """List entries, newest first unless `oldest_first`; `since_ms` is included, `until_ms` is not."""
        values: dict[str, object] = {
            "since": -_LARGEST if since_ms is None else since_ms,
            "until": _LARGEST if until_ms is None else until_ms,
            "act": act,
            "actor": actor,
            "target": target,
            "limit": limit + 1,
        }
        place = (0 if oldest_first else _LARGEST) if cursor is None else decode(cursor, int)[0]
        if oldest_first:
            rows = await self._rows("audit_oldest", after=place, **values)
        else:
            rows = await self._rows("audit_newest", before=place, **values)
        return page([_record(row) for row in rows], limit, lambda record: encode(record.id))


def _record(row: Row) -> AuditRecord:
    number, at_ms, actor, token_id, address, act, target, detail, digest = row
    return AuditRecord(
        id=number,
        at=shown(at_ms),
        actor=actor,
        token_id=token_id,
        address=address,
        act=act,
        target=target,
        detail=detail,
        hash=digest,
    )
