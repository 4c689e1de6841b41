"""The terms of both sides. Frozen, keyword-only; times are milliseconds since 1970 (see `times`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

ERROR_CODES: Final = (
    "dns",
    "connect",
    "timeout",
    "tls",
    "clock",
    "portal",
    "auth",
    "rejected",
    "http_4xx",
    "http_5xx",
    "storage",
)
"""What a sync event's `errors` may count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stamp:
    """The device's clocks at one moment."""

    at_ms: int
    """The wall clock, right or wrong."""
    boot_id: str
    boottime_ms: int
    """Milliseconds since this boot, suspended time included (CLOCK_BOOTTIME)."""
    clock_synced: bool
    """Whether the kernel considered the wall clock synchronised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Where an event was first recorded, if it was transferred into this stream (salvage, requeue, a cloned card)."""

    stream: str
    seq: int
    device_id: str | None = None
    """Whose stream it is, if that is another device's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """An event the receiver will never store under this seq."""

    seq: int
    code: str
    """`invalid_event` or `conflict`."""
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """The receiver's answer to a batch: every event in it is stored, a duplicate, or rejected."""

    device_id: str
    stream: str
    stored: int
    duplicates: int
    rejected: tuple[Rejection, ...]
    watermark: int
    """The highest n for which 1..n are all stored or rejected."""
    server_time: str
    missing: tuple[tuple[int, int], ...] = ()
    """Inclusive ranges that the receiver misses between the watermark and the highest seq it has seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyncEvent:
    """The record of one sync run, as `POST /api/sync-event` takes it."""

    device_id: str
    timestamp: str
    total_files_synced: int
    total_errors: int
    internet_speed: float
    """Mbit/s."""
    errors: Mapping[str, int] = field(default_factory=dict)
