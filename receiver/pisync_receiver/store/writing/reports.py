"""Sync events into the database, and the devices' health with them."""

import json
from collections.abc import Mapping
from typing import Any

from pisync_receiver.health import Crossing, Failures, Health, after_failure, after_success, crossing
from pisync_receiver.store.types import StoredSyncEvent, SyncReport
from pisync_receiver.store.writing.states import Group


def store_report(group: Group, report: SyncReport) -> StoredSyncEvent:
    """Store a report, or find the first one under its key."""
    device = group.device(report.device_id)
    device.contact(report.received_ms)
    if report.idempotency_key is not None:
        key = (report.device_id, report.idempotency_key)
        if (first := group.tables.one("sync_event_by_key", *key)) is not None:
            return sync_event_of(first)
    number = group.tables.sync_event_id(report.device_id)
    errors = json.dumps(dict(report.errors), separators=(",", ":")) if report.errors else None
    group.tables.put("insert_sync_event", [_row(number, report, errors)])
    health = device.health
    before = health.consecutive_failures
    device.health = _after(group, health, report, errors)
    streak = device.health.consecutive_failures
    if (crossed := crossing(before, streak)) is not None:
        group.tables.crossed(report.device_id, crossed, report.received_ms, device.health)
    return _stored(number, report, before, streak, crossed)


def errors_of(text: str | None) -> Mapping[str, int]:
    """Error counts from their JSON text."""
    return {} if text is None else json.loads(text)


def sync_event_of(row: tuple[Any, ...]) -> StoredSyncEvent:
    """A row of `sync_events` in the order of the table's columns, without the key."""
    number, device_id, timestamp, at_ms, files, total_errors, speed, errors, received_ms = row
    return StoredSyncEvent(
        id=number,
        device_id=device_id,
        timestamp=timestamp,
        at_ms=at_ms,
        total_files_synced=files,
        total_errors=total_errors,
        internet_speed=speed,
        errors=errors_of(errors),
        received_ms=received_ms,
    )


def _after(group: Group, before: Health, report: SyncReport, errors: str | None) -> Health:
    if report.total_errors > 0:
        return after_failure(before, report.at_ms, errors)

    def failures_after(at_ms: int) -> Failures:
        count, oldest_ms = group.tables.all("failures_after", report.device_id, at_ms)[0]
        return Failures(count=count, oldest_ms=oldest_ms)

    return after_success(before, report.at_ms, failures_after)


def _row(number: int, report: SyncReport, errors: str | None) -> tuple[Any, ...]:
    return (
        number,
        report.device_id,
        report.timestamp,
        report.at_ms,
        report.total_files_synced,
        report.total_errors,
        report.internet_speed,
        errors,
        report.received_ms,
        report.idempotency_key,
    )


def _stored(number: int, report: SyncReport, before: int, streak: int, crossed: Crossing | None) -> StoredSyncEvent:
    return StoredSyncEvent(
        id=number,
        device_id=report.device_id,
        timestamp=report.timestamp,
        at_ms=report.at_ms,
        total_files_synced=report.total_files_synced,
        total_errors=report.total_errors,
        internet_speed=report.internet_speed,
        errors=report.errors,
        received_ms=report.received_ms,
        crossing=crossed,
        consecutive_failures=streak,
        streak_before=before,
    )
