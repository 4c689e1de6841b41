"""The state of each device, which sites need help, and the records that say so.

A device has one state, the first of these that fits: `retired`; `new`, if it was never in contact; `silent`, if its
last contact is longer ago than its site allows; `failing`, if its streak of failures has reached the alarm; `well`.
Whether something of it is missing (`incomplete`) is a flag beside the state. The SQL for it is `device_state` in
store/sql/parts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

from msgspec import Struct

from pisync_receiver.domain.health import ALARM
from pisync_receiver.domain.records import ErrorsByCode, Time, errors_of, time_of
from pisync_receiver.domain.rows import Device

State = Literal["well", "failing", "silent", "new", "retired"]
STATES: Final[tuple[State, ...]] = ("well", "failing", "silent", "new", "retired")
"""In SQL a state is its place here."""
TROUBLE: Final[tuple[State, ...]] = ("failing", "silent")
"""The states that ask for help."""

DEVICES_OF_A_CLASS: Final = 3
"""Devices in trouble that make a site need help as a whole, if they are half of its devices; fewer if they are all."""

Sort = Literal["device_id", "last_contact", "failures", "site"]
SORTS: Final[tuple[Sort, ...]] = ("device_id", "last_contact", "failures", "site")
SiteSort = Literal["need", "site"]
SITE_SORTS: Final[tuple[SiteSort, ...]] = ("need", "site")


class Criteria(Struct, frozen=True, kw_only=True):
    """What states are judged by."""

    now_ms: int
    silent_after_ms: int
    """Where the site has none of its own."""


class DeviceFilter(Struct, frozen=True, kw_only=True):
    """Which devices; None does not filter."""

    site: str | None = None
    without_site: bool = False
    """Only those that belong to no site."""
    sites: tuple[str, ...] | None = None
    """The only sites that the caller may see."""
    state: State | None = None
    search: str | None = None
    """Part of the id, the label or the site."""
    incomplete: bool | None = None
    cloned: bool | None = None
    silent_since_ms: int | None = None
    """Without contact at or after this moment; without retired devices."""


class DeviceRecord(Struct, frozen=True, kw_only=True):
    """A device: its state, its last contact and refusal, and how its sync runs go."""

    device_id: str
    label: str | None
    site: str | None
    state: State
    since: Time | None
    """Since when it is in this state; when well, its last success."""
    incomplete: bool
    """Whether a stream of it lacks something, or holds dead letters or conflicts."""
    agent: str | None
    enrolled_at: Time | None
    retired_at: Time | None
    last_contact: Time | None
    last_refused: Time | None
    consecutive_failures: int
    total_failures: int
    failing_since: Time | None
    last_sync_at: Time | None
    last_success_at: Time | None
    last_errors: ErrorsByCode
    cloned_since: Time | None
    conflicts: int
    sync_asked_at: Time | None
    """When an admin asked for a sync that the device has not picked up yet."""


class IncompleteDevice(Struct, frozen=True, kw_only=True):
    """A device of which something is missing, or was rejected, or conflicts."""

    device_id: str
    site: str | None
    label: str | None
    missing_count: int
    missing: list[tuple[str, int, int]]
    """The first missing ranges: stream, first and last seq."""
    rejected: int
    conflicts: int
    cloned_since: Time | None


class Cause(Struct, frozen=True, kw_only=True):
    """An error code, and how many failing devices named it in their newest failure."""

    code: str
    devices: int


class SiteRecord(Struct, frozen=True, kw_only=True):
    """A site: how many of its devices are in which state, and how much it needs help."""

    site: str | None
    """None stands for the devices that belong to no site."""
    devices: int
    well: int
    failing: int
    silent: int
    new: int
    retired: int
    incomplete: int
    cloned: int
    need: float
    """trouble² / (devices - retired), where trouble is failing + silent."""
    in_need: bool
    """Whether it fails as a whole: half of its devices or more are in trouble, and these are three or all of them."""
    since: Time | None
    """Since when half of its devices in trouble are so."""
    last_contact: Time | None
    causes: list[Cause]
    """The most frequent first."""
    silent_after_s: int | None
    """When its devices count as silent; None: as the receiver's setting says."""


class StateCounts(Struct, frozen=True, kw_only=True):
    """Devices by state."""

    well: int = 0
    failing: int = 0
    silent: int = 0
    new: int = 0
    retired: int = 0


class Today(Struct, frozen=True, kw_only=True):
    """Since midnight UTC: sync runs, those with errors, and events."""

    runs: int
    failed: int
    events: int


class Delay(Struct, frozen=True, kw_only=True):
    """Events that arrived within a number of hours, and later than the range before."""

    hours: int | None
    """None: later than every range."""
    events: int


class Change(Struct, frozen=True, kw_only=True):
    """Devices of a site that are in another state than before."""

    site: str | None
    before: State
    state: State
    devices: int
    since: Time | None
    """Since when the first of them is."""


class Overview(Struct, frozen=True, kw_only=True):
    """The fleet at a glance."""

    at: Time
    devices: StateCounts
    incomplete: int
    """Devices of which something is missing, or was rejected, or conflicts."""
    cloned: int
    events_missing: int
    sites: int
    sites_in_need: int
    today: Today
    delay: list[Delay]
    """Of the events that arrived in the last seven days."""
    changes: list[Change]
    """Of the last 24 hours, those of most devices first."""


class Fleet(Struct, frozen=True, kw_only=True):
    """Every device, site and stream, counted."""

    devices: StateCounts
    incomplete: int
    cloned: int
    troubled: Sequence[SiteRecord]
    """Sites with devices in trouble, those in most need first."""
    streams_behind: int
    """Streams of which something is missing."""
    events_missing: int
    """How far watermarks are behind the highest seq seen, summed; capped at 2**53 - 1."""

    @property
    def sites_in_need(self) -> int:
        return sum(site.in_need for site in self.troubled)


class SiteCounts(Struct, frozen=True):
    """A site's devices, counted; columns of the query `site_counts`."""

    site: str | None
    silent_after_ms: int | None
    devices: int
    failing: int
    silent: int
    new: int
    retired: int
    cloned: int
    last_contact_ms: int | None

    @property
    def well(self) -> int:
        return self.devices - self.failing - self.silent - self.new - self.retired


class TroubledDevice(Struct, frozen=True):
    """A device in trouble; columns of the query `troubled_devices`."""

    site: str | None
    state: int
    """Its place in STATES."""
    since_ms: int | None
    errors: str | None


def state_of(device: Device, silent_after_ms: int, now_ms: int) -> State:
    """Return a device's state; `silent_after_ms` is its site's, or the receiver's setting."""
    if device.retired_ms is not None:
        return "retired"
    if device.last_contact_ms is None:
        return "new"
    if device.last_contact_ms < now_ms - silent_after_ms:
        return "silent"
    return "failing" if device.consecutive_failures >= ALARM else "well"


def since_of(device: Device, state: State) -> int | None:
    """Return since when a device is in its state; for a device that is well, its last success."""
    return {
        "retired": device.retired_ms,
        "new": device.enrolled_ms,
        "silent": device.last_contact_ms,
        "failing": device.failing_since_ms,
        "well": device.last_success_ms,
    }[state]


def device_record(row: Device, *, silent_after_ms: int | None, incomplete: bool, criteria: Criteria) -> DeviceRecord:
    """Return what is shown of a device. `silent_after_ms` is its site's own, if it has one."""
    after_ms = criteria.silent_after_ms if silent_after_ms is None else silent_after_ms
    state = state_of(row, after_ms, criteria.now_ms)
    return DeviceRecord(
        device_id=row.device_id,
        label=row.label,
        site=row.site,
        state=state,
        since=time_of(since_of(row, state)),
        incomplete=incomplete,
        agent=row.agent,
        enrolled_at=time_of(row.enrolled_ms),
        retired_at=time_of(row.retired_ms),
        last_contact=time_of(row.last_contact_ms),
        last_refused=time_of(row.last_refused_ms),
        consecutive_failures=row.consecutive_failures,
        total_failures=row.total_failures,
        failing_since=time_of(row.failing_since_ms),
        last_sync_at=time_of(row.last_sync_ms),
        last_success_at=time_of(row.last_success_ms),
        last_errors=errors_of(row.last_errors),
        cloned_since=time_of(row.cloned_since_ms),
        conflicts=row.conflicts,
        sync_asked_at=time_of(row.sync_asked_ms),
    )


def need(counts: SiteCounts) -> float:
    """Return how much a site needs help: a whole class in trouble stands above scattered devices."""
    active = counts.devices - counts.retired
    return round((counts.failing + counts.silent) ** 2 / active, 3) if active else 0.0


def in_need(counts: SiteCounts) -> bool:
    """Return whether a site fails as a whole. Devices without a site are none."""
    trouble = counts.failing + counts.silent
    active = counts.devices - counts.retired
    whole = trouble >= DEVICES_OF_A_CLASS or trouble == active
    return counts.site is not None and trouble > 0 and active <= 2 * trouble and whole


def site_records(
    counted: Iterable[SiteCounts], incomplete: Mapping[str | None, int], troubled: Iterable[TroubledDevice]
) -> list[SiteRecord]:
    """Return the sites, those in most need first, then by name."""
    by_site: dict[str | None, list[TroubledDevice]] = {}
    for device in troubled:
        by_site.setdefault(device.site, []).append(device)
    records = [_site_record(counts, incomplete.get(counts.site, 0), by_site.get(counts.site, ())) for counts in counted]
    return sorted(records, key=lambda record: (-record.need, record.site or ""))


def _site_record(counts: SiteCounts, incomplete: int, troubled: Sequence[TroubledDevice]) -> SiteRecord:
    begun = sorted(device.since_ms for device in troubled if device.since_ms is not None)
    codes: dict[str, int] = {}
    for device in troubled:
        if STATES[device.state] == "failing":
            for code in (code for code, count in errors_of(device.errors).items() if count):
                codes[code] = codes.get(code, 0) + 1
    return SiteRecord(
        site=counts.site,
        devices=counts.devices,
        well=counts.well,
        failing=counts.failing,
        silent=counts.silent,
        new=counts.new,
        retired=counts.retired,
        incomplete=incomplete,
        cloned=counts.cloned,
        need=need(counts),
        in_need=in_need(counts),
        since=time_of(begun[(len(begun) - 1) // 2]) if begun else None,
        last_contact=time_of(counts.last_contact_ms),
        causes=[
            Cause(code=code, devices=devices)
            for code, devices in sorted(codes.items(), key=lambda each: (-each[1], each[0]))
        ],
        silent_after_s=None if counts.silent_after_ms is None else counts.silent_after_ms // 1000,
    )


def state_counts(records: Iterable[SiteRecord]) -> StateCounts:
    """Return the devices of all sites, by state."""
    sums = dict.fromkeys(STATES, 0)
    for record in records:
        for state in STATES:
            sums[state] += getattr(record, state)
    return StateCounts(**sums)
