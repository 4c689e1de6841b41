"""What admins see and write about single devices and sites."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from msgspec import Raw
from msgspec.json import encode as encode_json

from pisync_receiver.domain.acts import Conflict, EventVersion, Note, Reason, Suspicion
from pisync_receiver.domain.audit import audited
from pisync_receiver.domain.facts import CONFLICT
from pisync_receiver.domain.records import EventRecord, Page
from pisync_receiver.domain.rows import Device
from pisync_receiver.domain.sites import Stay, site_at, stays
from pisync_receiver.domain.submissions import Actor
from pisync_receiver.domain.times import shown
from pisync_receiver.store.audit import audit_statement
from pisync_receiver.store.cursors import decode, encode, page
from pisync_receiver.store.reading import BODY_SHOWN, data_of, event_record, fill
from pisync_receiver.store.running import Query, QueryRunner, Row, Sites, build, listed

_LARGEST: Final = 2**63 - 1
_STEP: Final = 4
"""Seqs with conflicts read at once: each may have several versions of 64 KiB."""


class Acts(QueryRunner):
    """Questions about single devices and sites, and notes on them. `sites`: all that the caller may see."""

    # Notes.

    async def notes(
        self, *, device_id: str | None = None, site: str | None = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Note]:
        """List what was written about a device or about a site, newest first."""
        before = _LARGEST if cursor is None else decode(cursor, int)[0]
        query, about = ("notes_of_device", {"device": device_id}) if site is None else ("notes_of_site", {"site": site})
        rows = await self._rows(query, **about, before=before, limit=limit + 1)
        found = page(rows, limit, lambda row: encode(row[0]))
        return Page(rows=[note_of(*row) for row in found.rows], next=found.next)

    async def add_note(
        self, *, device_id: str | None = None, site: str | None = None, at_ms: int, by: Actor, text: str
    ) -> Note:
        """Write about a device or a site."""
        values = {"device": device_id, "site": site, "at": at_ms, "author": by.name, "text": text}
        target = f"site {site}" if device_id is None else f"device {device_id}"
        ids: list[int] = []

        def decide(found: list[list[Row]]) -> Sequence[Query]:
            ids[:] = [number for (number,) in found[0]]  # again if the transaction is repeated
            return [audit_statement(audited(by, "note.write", target, at_ms, {"note": ids[0]}))]

        await self.act([("insert_note", values)], decide)
        return note_of(ids[0], at_ms, by.name, text)

    # Devices.

    async def stays(self, device_id: str) -> list[Stay]:
        """List the sites where a device is and was, newest first; none for an unknown device."""
        return [
            stay for row in await self._rows("devices_by_id", devices=[device_id]) for stay in stays(build(Device, row))
        ]

    async def conflicts(
        self, device_id: str, *, sites: Sites = None, limit: int = 100, cursor: str | None = None
    ) -> Page[Conflict]:
        """List the seqs of a device under which several events were sent. A page has fewer than `limit` where they are
        large. Versions of other sites than `sites` are left out."""
        begin = ["", 0] if cursor is None else decode(cursor, str, int)

        async def read(last: Conflict | None, rows: int) -> list[Conflict]:
            stream, seq = begin if last is None else (last.stream, last.seq)
            about = {"device": device_id, "stream": stream, "seq": seq, "limit": rows}
            devices, stored, others = await self._read(
                ("devices_by_id", {"devices": [device_id]}),
                ("conflict_events", about),
                ("conflict_versions", {**about, "longest": BODY_SHOWN}),
            )
            return _conflicts(build(Device, devices[0]), sites, stored, others) if devices else []

        found, fit = await fill(read, _size, limit=limit, step=_STEP)
        shown_page = page(found, fit, lambda conflict: encode(conflict.stream, conflict.seq))
        return Page(rows=[conflict for conflict in shown_page.rows if conflict.versions], next=shown_page.next)

    async def suspicious(self, *, sites: Sites = None, limit: int = 100, cursor: str | None = None) -> Page[Suspicion]:
        """List devices by id that seem to be several, or were used after their end."""
        after = "" if cursor is None else decode(cursor, str)[0]
        rows = await self._rows("suspicious", after=after, sites=listed(sites), limit=limit + 1)
        return page([_suspicion(*row) for row in rows], limit, lambda found: encode(found.device_id))


def note_of(number: int, at_ms: int, author: str | None, text: str) -> Note:
    return Note(id=number, at=shown(at_ms), author=author, text=text)


def _conflicts(device: Device, sites: Sites, stored: Sequence[Row], others: Sequence[Row]) -> list[Conflict]:
    versions: dict[tuple[str, int], list[EventVersion]] = defaultdict(list)
    for stream, seq, *columns in stored:
        record = event_record(tuple(columns))
        if sites is None or record.site in sites:
            sent = Raw(_as_sent(record, seq))
            versions[stream, seq].append(EventVersion(kept=True, received_at=record.received_at, event=sent))
    for stream, seq, code, body, received_ms in others:
        place = versions[stream, seq]
        if sites is None or site_at(device, received_ms) in sites:
            version = EventVersion(kept=code != CONFLICT, received_at=shown(received_ms), event=data_of(body))
            place.insert(0 if version.kept else len(place), version)
    return [Conflict(stream=stream, seq=seq, versions=versions[stream, seq]) for stream, seq in sorted(versions)]


def _as_sent(record: EventRecord, seq: int) -> bytes:
    """Return the event as a device sends it."""
    fields = {
        "seq": seq,
        "type": record.type,
        "id": record.event_id,
        "learner_home": record.learner_home,
        "learner_id": record.learner_id,
        "object_id": record.object_id,
        "occurred_at": record.occurred_at,
        "recorded_at": record.recorded_at,
        "boot_id": record.boot_id,
        "boottime_ms": record.boottime_ms,
        "clock_synced": record.clock_synced,
        "data": None if bytes(record.data) == b"null" else record.data,
    }
    return encode_json({name: value for name, value in fields.items() if value is not None})


def _size(conflict: Conflict) -> int:
    return sum(len(memoryview(version.event)) for version in conflict.versions)


def _suspicion(
    device_id: str,
    site: str | None,
    cloned_ms: int | None,
    used_ms: int | None,
    code_id: int | None,
    enrolled_ms: int | None,
    times: int,
) -> Suspicion:
    reasons = []
    if cloned_ms is not None:
        detail = "two devices have used this identity: look for a cloned card"
        reasons.append(Reason(code="cloned", at=shown(cloned_ms), detail=detail))
    if used_ms is not None:
        detail = "a token of it was used after it was revoked: the device may be lost, or a copy of its card in use"
        reasons.append(Reason(code="used_after_end", at=shown(used_ms), detail=detail))
    if times > 1 and enrolled_ms is not None:
        detail = (
            f"it enrolled {times} times with enrollment code {code_id}: an answer was lost, or several devices were "
            "prepared with one device id"
        )
        reasons.append(Reason(code="enrolled_again", at=shown(enrolled_ms), detail=detail))
    return Suspicion(device_id=device_id, site=site, reasons=reasons)
