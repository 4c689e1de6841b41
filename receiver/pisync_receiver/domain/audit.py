"""The audit log: who did what, to what, when and from where, in a chain of hashes.

Entries are numbered 1, 2, 3, …. The hash of an entry is the SHA-256, in hex, of two texts in UTF-8, one after another:

    the hash of the entry before it; of the first entry, 64 zeros
    [id, at, actor, token_id, address, act, target, detail], the entry as JSON without spaces between its parts and with
    characters outside ASCII as they are

The values are those that `GET /api/audit` answers: `at` is text in RFC 3339 with milliseconds, `detail` is text too. So
each hash vouches for all entries before it, and another program needs no more than the API's answer to check them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from pisync_receiver.domain.submissions import Actor
from pisync_receiver.domain.times import shown

GENESIS: Final = "0" * 64
"""Stands for the hash before the first entry."""


class AuditEntry(Struct, frozen=True, kw_only=True):
    """Table `audit` without its id and hash, which the engine gives as it writes. Holds no secret, learner or event."""

    at_ms: int
    actor: str
    token_id: int | None
    address: str | None
    act: str
    """`noun.verb`."""
    target: str | None
    """What it was done to: `device pibook-1`, `token 12`."""
    detail: str
    """A JSON object as text."""
    made: str | None = None
    """The hash of a token or code of the same group, whose id completes `target`."""


class AuditRecord(Struct, frozen=True, kw_only=True):
    """An entry of the audit log. `hash` covers it and all entries before it."""

    id: int
    at: str
    actor: str
    token_id: int | None
    address: str | None
    act: str
    target: str | None
    detail: str
    """A JSON object as text: the text is what the hash covers."""
    hash: str


def audited(
    by: Actor,
    act: str,
    target: str | None,
    at_ms: int,
    detail: Mapping[str, object] = MappingProxyType({}),
    *,
    made: str | None = None,
) -> AuditEntry:
    """Return an entry. Details that are None are left out."""
    given = {name: value for name, value in detail.items() if value is not None}
    return AuditEntry(
        at_ms=at_ms,
        actor=by.name,
        token_id=by.token_id,
        address=by.address,
        act=act,
        target=target,
        detail=json.dumps(given, ensure_ascii=False, separators=(",", ":")),
        made=made,
    )


def with_target(entry: AuditEntry, ids: Mapping[str, int]) -> AuditEntry:
    """Return the entry with the id of what the group made in its target."""
    return entry if entry.made is None else replace(entry, target=f"{entry.target} {ids.get(entry.made, 0)}")


def chained(entries: Sequence[AuditEntry], last: tuple[int, str] | None) -> list[dict[str, Any]]:
    """Return the rows of `entries`, given the last row's id and hash, if there is one."""
    number, before = last or (0, GENESIS)
    rows = []
    for number, entry in enumerate(entries, number + 1):  # noqa: B020 - it counts on
        before = entry_hash(before, number, shown(entry.at_ms), entry)
        rows.append(
            {
                "id": number,
                "at": entry.at_ms,
                "actor": entry.actor,
                "token": entry.token_id,
                "address": entry.address,
                "act": entry.act,
                "target": entry.target,
                "detail": entry.detail,
                "hash": before,
            }
        )
    return rows


def entry_hash(before: str, number: int, at: str, entry: AuditEntry | AuditRecord) -> str:
    """Return the hash of an entry, given the hash of the entry before it."""
    values = [number, at, entry.actor, entry.token_id, entry.address, entry.act, entry.target, entry.detail]
    return hashlib.sha256((before + json.dumps(values, ensure_ascii=False, separators=(",", ":"))).encode()).hexdigest()


class Chain:
    """Checks entries from the first to the last."""

    def __init__(self, expected: str | None = None) -> None:
        """`expected` is a hash that was written down earlier."""
        self.number = 0
        self.head = GENESIS
        self.found = expected is None
        """Whether the expected hash is in the chain."""
        self._expected = expected

    def add(self, record: AuditRecord) -> str | None:
        """Check the next entry; return what is wrong with it, None for nothing."""
        if record.id != self.number + 1:
            return f"entry {self.number + 1} is missing: entry {record.id} comes after entry {self.number}"
        if record.hash != entry_hash(self.head, record.id, record.at, record):
            return f"entry {record.id} ({record.at}, {record.act} by {record.actor}) is not as it was written"
        self.number, self.head = record.id, record.hash
        self.found = self.found or record.hash == self._expected
        return None
