"""A reference engine in dicts: serves plans and details exactly as `domain.facts` documents them, and refuses what the
keys of the database refuse. It stands in for SQLite and PostgreSQL where a decision is tested without I/O."""

from collections.abc import Iterable, Sequence
from dataclasses import replace as with_fields
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import astuple, replace

from pisync_receiver.domain import rows as tables
from pisync_receiver.domain.audit import AuditEntry
from pisync_receiver.domain.decide import decide, details, plan
from pisync_receiver.domain.facts import (
    CARRIED,
    STORED,
    Changes,
    Details,
    Facts,
    Failures,
    Place,
    Plan,
    StreamName,
    Version,
)
from pisync_receiver.domain.health import FAILURES_COUNTED
from pisync_receiver.domain.submissions import Enrolled, Outcome, Submission

K = TypeVar("K")
V = TypeVar("V")
S = TypeVar("S", bound=Struct)


class DuplicateKey(Exception):
    """A row with this key is there already."""


class MemoryStore:
    """Tables as dicts from primary keys to rows, in the order of arrival."""

    def __init__(self) -> None:
        self.devices: dict[str, tables.Device] = {}
        self.streams: dict[StreamName, tables.Stream] = {}
        self.events: dict[Place, tables.StoredEvent] = {}
        self.event_keys: dict[tuple[str, bytes], tables.EventKey] = {}
        self.carried: dict[Place, tables.Carried] = {}
        self.rejected: dict[tuple[str, str, int, bytes], tables.Rejected] = {}
        self.gaps: dict[StreamName, dict[int, int]] = {}
        """Last seq by first seq."""
        self.sync_events: dict[tuple[str, int], tables.StoredSyncEvent] = {}
        self.sums: dict[tuple[str, int, str, str, str], int] = {}
        self.tokens: dict[str, tables.Token] = {}
        self.codes: dict[str, tables.EnrollmentCode] = {}
        self.audit: list[AuditEntry] = []
        self.served = 0
        """Rows handed out by `fetch` and `fetch_details`."""
        self.exchanges = 0
        self._sync_keys: dict[tuple[str, str], tables.StoredSyncEvent] = {}
        self._last_ids: dict[str, int] = {}

    def run(self, *submissions: Submission) -> list[Outcome]:
        """Decide one group, write it, and return its outcomes."""
        facts = self.fetch(plan(submissions))
        if (wanted := details(facts, submissions)) is not None:
            self.fetch_details(wanted, facts)
        decision = decide(facts, submissions)
        self.write(decision.changes)
        return [self._with_id(outcome) for outcome in decision.outcomes]

    def rows(self, table: str) -> list[Struct]:
        """Return a table's rows as a database gives them: by id, or by primary key."""
        if table == "gaps":
            by_stream = sorted(self.gaps.items())
            return [tables.Gap(*name, first, last) for name, gaps in by_stream for first, last in sorted(gaps.items())]
        found: dict[Any, Struct] = getattr(self, table)
        if table in ("events", "tokens", "sync_events"):
            return [*found.values()]
        return [row for _, row in sorted(found.items())]

    # Fetching.

    def fetch(self, wanted: Plan) -> Facts:
        """Serve a plan."""
        for keys in (wanted.devices, wanted.known_devices, wanted.streams, wanted.sync_keys, wanted.event_keys):
            assert list(keys) == sorted(set(keys)), "a plan's keys are sorted and distinct"  # type: ignore[type-var]
        self.exchanges += 1
        for device_id in wanted.devices:
            self.devices.setdefault(device_id, tables.Device(device_id=device_id))
        return Facts(
            devices=self._serve(self.devices, [*wanted.devices, *wanted.known_devices]),
            streams=self._serve(self.streams, wanted.streams),
            sync_events=self._serve(self._sync_keys, wanted.sync_keys),
            event_keys=self._places(wanted.event_keys),
            sync_event_ids=[self._next_id("sync_events") for _ in range(wanted.sync_event_ids)],
            tokens=self._served(
                row
                for row in self.tokens.values()
                if row.token_hash in wanted.token_hashes
                or row.id in wanted.token_ids
                or (row.device_id in wanted.tokens_of and row.revoked_ms is None)
            ),
            codes=self._served(
                row for row in self.codes.values() if row.code_hash in wanted.code_hashes or row.id in wanted.code_ids
            ),
        )

    def fetch_details(self, wanted: Details, facts: Facts) -> None:
        """Serve details into `facts`."""
        self.exchanges += 1
        facts.devices |= self._serve(self.devices, wanted.known_devices)
        facts.event_keys |= self._places(wanted.event_keys)
        facts.tokens += self._served(
            row
            for row in self.tokens.values()
            if (row.device_id in wanted.tokens_of or row.parent_id in wanted.sessions_of) and row.revoked_ms is None
        )
        for device_id, stream, seqs in wanted.versions:
            for seq in seqs:
                place = (device_id, stream, seq)
                if versions := self._served(self._versions(place)):
                    facts.versions[place] = versions
        for device_id, stream, count, seqs in wanted.gaps:
            gaps = sorted(self.gaps.get((device_id, stream), {}).items())
            own = {gap for seq in seqs for gap in [gap for gap in gaps if gap[0] <= seq][-1:]}
            facts.gaps[device_id, stream] = self._served(sorted({*gaps[:count], *own}))
        for device_id, stream, first, last in wanted.neighbours:
            rows = [row for row in self.events.values() if (row.device_id, row.stream) == (device_id, stream)]
            stored = sorted((row.seq, row.best_ms) for row in rows)
            before = [best_ms for seq, best_ms in stored if seq < first][-1:]
            after = [best_ms for seq, best_ms in stored if seq > last][:1]
            self.served += len(before) + len(after)
            facts.neighbours[device_id, stream] = (next(iter(before), None), next(iter(after), None))
        for device_id, stream, below, boot, limit in wanted.earlier:
            before = sorted(seq for name, at, seq in self.events if (name, at) == (device_id, stream) and seq < below)
            found = [self.events[device_id, stream, seq] for seq in reversed(before)]
            found = [] if found and found[0].boot_id != boot else found
            names = tables.EarlierEvent.__struct_fields__
            earlier = [tables.EarlierEvent(*(getattr(row, name) for name in names)) for row in found[:limit]]
            facts.earlier[device_id, stream, below] = self._served(earlier)
        for device_id, at_ms in wanted.late_successes:
            failures = [row for row in self.sync_events.values() if row.device_id == device_id and row.total_errors]
            times = sorted(row.at_ms for row in failures if row.at_ms > at_ms)[:FAILURES_COUNTED]
            self.served += 1
            facts.failures_after[device_id, at_ms] = Failures(len(times), next(iter(times), None))

    def _versions(self, place: Place) -> list[Version]:
        stored = [Version(STORED, self.events[place].content)] if place in self.events else []
        carried = [Version(CARRIED, self.carried[place].content)] if place in self.carried else []
        rejected = [row for row in self.rejected.values() if (row.device_id, row.stream, row.seq) == place]
        return stored + carried + [Version(row.code, row.content, row.detail) for row in rejected]

    def _places(self, keys: Sequence[tuple[str, bytes]]) -> dict[tuple[str, bytes], Place]:
        rows = self._serve(self.event_keys, keys)
        return {key: (row.stored_device_id, row.stream, row.seq) for key, row in rows.items()}

    def _serve(self, table: dict[K, V], keys: Sequence[K]) -> dict[K, V]:
        found = {key: table[key] for key in keys if key in table}
        self.served += len(found)
        return found

    def _served(self, rows: Iterable[V]) -> list[V]:
        found = list(rows)
        self.served += len(found)
        return found

    # Writing.

    def write(self, changes: Changes) -> None:
        """Apply changes; raise DuplicateKey as the database would, with nothing rolled back."""
        self.devices |= {row.device_id: row for row in changes.devices}
        self.streams |= {(row.device_id, row.stream): row for row in changes.streams}
        _insert_all(self.events, changes.events, width=3)
        for fixed in changes.repaired:
            place = (fixed.device_id, fixed.stream, fixed.seq)
            self.events[place] = replace(self.events[place], best_ms=fixed.best_ms, quality=fixed.quality)
        _insert_all(self.event_keys, changes.event_keys, width=2)
        _insert_all(self.carried, changes.carried, width=3)
        _insert_all(self.rejected, changes.rejected, width=4)
        for gap in changes.gaps_closed:
            assert self.gaps[gap.device_id, gap.stream].pop(gap.first) == gap.last
        for gap in changes.gaps:
            _insert(self.gaps.setdefault((gap.device_id, gap.stream), {}), gap.first, gap.last)
        _insert_all(self.sync_events, changes.sync_events, width=2)
        for row in changes.sync_events:
            if row.idempotency_key is not None:
                _insert(self._sync_keys, (row.device_id, row.idempotency_key), row)
        for added in changes.sums:
            for about, count in added.counts.items():
                key = (added.what, added.day, added.site, added.name, about)
                self.sums[key] = self.sums.get(key, 0) + count
        for token in changes.tokens:
            _insert(self.tokens, token.token_hash, replace(token, id=self._next_id("tokens")))
        for code in changes.codes:
            _insert(self.codes, code.code_hash, replace(code, id=self._next_id("codes")))
        for token in changes.tokens_changed:
            assert self.tokens[token.token_hash].id == token.id
            self.tokens[token.token_hash] = token
        self.audit += changes.audit
        if (before_ms := changes.sessions_before_ms) is not None:
            kept = {
                digest: row for digest, row in self.tokens.items() if (row.session_until_ms or before_ms) >= before_ms
            }
            self.tokens = kept
        for code in changes.codes_changed:
            assert self.codes[code.code_hash].id == code.id
            self.codes[code.code_hash] = code

    def _with_id(self, outcome: Outcome) -> Outcome:
        """Put the ids that the database gave into an outcome."""
        if isinstance(outcome, tables.Token) and outcome.id == 0:
            return self._token_with_id(outcome)
        if isinstance(outcome, tables.EnrollmentCode) and outcome.id == 0:
            return replace(outcome, id=self.codes[outcome.code_hash].id)
        if isinstance(outcome, Enrolled) and outcome.token.id == 0:
            return with_fields(outcome, token=self._token_with_id(outcome.token))
        return outcome

    def _token_with_id(self, token: tables.Token) -> tables.Token:
        return replace(token, id=self.tokens[token.token_hash].id)

    def _next_id(self, table: str) -> int:
        self._last_ids[table] = self._last_ids.get(table, 0) + 1
        return self._last_ids[table]


def _insert(table: dict[K, V], key: K, row: V) -> None:
    if key in table:
        raise DuplicateKey(key)
    table[key] = row


def _insert_all(table: dict[Any, S], rows: Sequence[S], *, width: int) -> None:
    """Insert rows under the first `width` of their columns."""
    for row in rows:
        _insert(table, astuple(row)[:width], row)
