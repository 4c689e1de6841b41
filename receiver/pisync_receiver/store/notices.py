"""Queries of what is watched and of notices."""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

from pisync_receiver.domain.fleet import Criteria
from pisync_receiver.domain.notices import ChangedState, NoticeRecord, Transition, TransitionRecord, transition_record
from pisync_receiver.domain.records import Page, time_of
from pisync_receiver.domain.times import shown
from pisync_receiver.store.cursors import decode, encode, page
from pisync_receiver.store.fleet import judged
from pisync_receiver.store.running import Query, QueryRunner, Row, Sites, listed

_LARGEST: Final = 2**63 - 1


class Backlog(Struct, frozen=True):
    """What no notice has covered, and what no service has accepted."""

    pending: int
    first_ms: int | None
    """When the first pending transition was noticed, those to silence aside."""
    first_silent_ms: int | None
    last_notice_ms: int | None
    """When the newest notice of transitions was made, if that was within the time asked about."""
    last_daily_ms: int | None
    """When the newest daily digest was made."""
    unsent: int


class NoticeQueries(QueryRunner):
    """What is watched, and what was told."""

    async def changed_states(self, criteria: Criteria, *, limit: int) -> list[ChangedState]:
        """Return the first devices whose state is not the one they were last seen in; reads every device."""
        name, values = changed_states(criteria, limit=limit)
        return [ChangedState(*row) for row in await self._rows(name, **values)]

    async def alert_backlog(self, targets: Sequence[str], since_ms: int) -> Backlog:
        (row,) = await self._rows("alert_backlog", targets=list(targets), since=since_ms)
        return Backlog(*row)

    async def has_unsent(self, target: str) -> bool:
        """Return whether a service has yet to accept a notice."""
        return bool(await self._rows("has_unsent", target=target))

    async def lags(self) -> Mapping[str, int]:
        """Return how many events each consumer has yet to publish; empty where no worker can run."""
        return {}

    async def transitions(
        self,
        *,
        site: str | None = None,
        device_id: str | None = None,
        sites: Sites = None,
        since_ms: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[TransitionRecord]:
        """List the devices' changes of state, the newest first."""
        rows = await self._rows(
            "transitions",
            below=_LARGEST if cursor is None else decode(cursor, int)[0],
            since=-_LARGEST if since_ms is None else since_ms,
            device=device_id,
            site=site,
            sites=listed(sites),
            limit=limit + 1,
        )
        records = [
            transition_record(
                Transition(id=id, at_ms=at, device_id=device, site=at_site, before=before, state=state, since_ms=since)
            )
            for id, at, device, at_site, before, state, since in rows
        ]
        return page(records, limit, lambda record: encode(record.id))

    async def notices(
        self, *, since_ms: int | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[NoticeRecord]:
        """List the notices of every target, the newest first."""
        rows = await self._rows(
            "notices",
            below=_LARGEST if cursor is None else decode(cursor, int)[0],
            since=-_LARGEST if since_ms is None else since_ms,
            limit=limit + 1,
        )
        return page([_notice_record(row) for row in rows], limit, lambda record: encode(record.id))


def changed_states(criteria: Criteria, *, limit: int, devices: Sequence[str] | None = None) -> Query:
    """The query for devices, or some of them, whose state is not the one they were last seen in."""
    return "changed_states", {**judged(criteria), "devices": listed(devices), "limit": limit}


def _notice_record(row: Row) -> NoticeRecord:
    number, service, kind, title, body, made_ms, sent_ms = row
    return NoticeRecord(
        id=number, target=service, kind=kind, title=title, body=body, made_at=shown(made_ms), sent_at=time_of(sent_ms)
    )
