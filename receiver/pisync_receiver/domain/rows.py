"""Rows of the database's tables, the same on every engine: a struct's fields are the table's columns, in their order.

Times are whole milliseconds since 1970 (UTC). JSON columns hold text. An engine writes `msgspec.structs.astuple(row)`
or the row as a JSON object, and reads a row back with `Row(*columns)`.
"""

from msgspec import Struct


class Health(Struct, frozen=True, kw_only=True):
    """How a device's sync runs go, by the effective times of its sync events (see `health`)."""

    consecutive_failures: int = 0
    total_failures: int = 0
    failing_since_ms: int | None = None
    """The oldest failure of the streak."""
    last_sync_ms: int | None = None
    last_success_ms: int | None = None
    streak_after_ms: int | None = None
    """Only failures after this moment make the streak."""
    last_failure_ms: int | None = None
    last_errors: str | None = None
    """The error counts of the newest failure, as JSON text."""


class Device(Health, frozen=True, kw_only=True):
    """Table `devices`."""

    device_id: str
    label: str | None = None
    site: str | None = None
    """Where it is now."""
    site_since_ms: int | None = None
    """Since when; None for always."""
    site_history: str | None = None
    """Earlier sites as JSON text: `[[until_ms, site], …]`, oldest first, the newest SITES_KEPT of them."""
    agent: str | None = None
    """The agent's version, as the newest batch named it."""
    enrolled_ms: int | None = None
    code_id: int | None = None
    """The enrollment code that let it in."""
    retired_ms: int | None = None
    last_contact_ms: int | None = None
    last_refused_ms: int | None = None
    """When a token of it that had ended was last used."""
    cloned_since_ms: int | None = None
    conflicts: int = 0
    """Versions of events beside another under the same seq, those beyond the kept versions included."""
    streams: int = 0
    copies: int = 0
    """Events stored with an origin: above 0, its batches are checked against copies that arrived earlier."""
    sync_asked_ms: int | None = None
    """When an admin asked for a sync that has not been picked up yet."""
    changed_ms: int | None = None
    """When an admin or an enrollment last changed it, whatever that change claims about its own time."""


class Stream(Struct, kw_only=True):
    """Table `streams`: stored + carried + rejected + missing = highest."""

    device_id: str
    stream: str
    watermark: int = 0
    highest: int = 0
    stored: int = 0
    carried: int = 0
    """Accounted for because the same event is stored elsewhere."""
    rejected: int = 0
    conflicts: int = 0
    first_ms: int
    last_ms: int
    best_ms: int | None = None
    """The best time of the last event that was stored above the highest seq."""
    boots: str = "[]"
    """The last BOOTS_KEPT boots seen alive as JSON text: `[[boot_id, epoch_ms, boottime_ms], …]`; before them as
    many that are known from events, with a number below 0 (see `state.Account`)."""


class StoredEvent(Struct, frozen=True, gc=False):
    """Table `events` without the arrival number `id`, which the engine gives in the order of this list."""

    device_id: str
    stream: str
    seq: int
    type: str
    site: str | None
    learner_home: str | None
    learner_id: str | None
    object_id: str | None
    event_id: str | None
    occurred_at: str
    recorded_at: str | None
    boot_id: str | None
    boottime_ms: int | None
    clock_synced: bool
    data: str | None
    received_ms: int
    best_ms: int
    quality: int
    content: bytes


class EarlierEvent(Struct, frozen=True, gc=False):
    """What of a row of `events` says when it happened, and where it is counted (see `sums`)."""

    seq: int
    type: str
    site: str | None
    object_id: str | None
    occurred_at: str
    recorded_at: str | None
    boot_id: str | None
    boottime_ms: int | None
    received_ms: int
    best_ms: int
    quality: int


class Repaired(Struct, frozen=True, gc=False):
    """A better time for a row of `events`."""

    device_id: str
    stream: str
    seq: int
    best_ms: int
    quality: int


class EventKey(Struct, frozen=True, gc=False):
    """Table `event_keys`: an event with this key (`content.id_key`, `content.origin_key`) is stored at that place."""

    device_id: str
    """Whose key it is: the device, or `content.SHARED` and two hex digits for a UUID, which counts for all devices."""
    key: bytes
    stored_device_id: str
    stream: str
    seq: int


class Carried(Struct, frozen=True, gc=False):
    """Table `carried`: a seq that is accounted for because the same event is stored elsewhere."""

    device_id: str
    stream: str
    seq: int
    content: bytes
    stored_device_id: str
    stored_stream: str
    stored_seq: int


class Rejected(Struct, frozen=True, gc=False):
    """Table `rejected`: an event that broke a rule, or (code `conflict`) a further version of a seq that has one."""

    device_id: str
    stream: str
    seq: int
    content: bytes
    code: str
    detail: str
    body: str
    received_ms: int


class Gap(Struct, frozen=True, gc=False):
    """Table `gaps`: what is missing below a stream's highest seq, as inclusive ranges that do not touch."""

    device_id: str
    stream: str
    first: int
    last: int


class StoredSyncEvent(Struct, frozen=True, gc=False):
    """Table `sync_events`."""

    device_id: str
    id: int
    site: str | None
    timestamp: str
    """The claimed time, as sent."""
    at_ms: int
    """The effective time."""
    total_files_synced: int
    total_errors: int
    internet_speed: float
    errors: str | None
    """Error counts as JSON text; None if none were sent."""
    idempotency_key: str | None
    received_ms: int


class Sums(Struct, frozen=True):
    """Rows of table `sums` that differ in their object: how much is added to each (see `sums`)."""

    what: str
    day: int
    site: str
    name: str
    counts: dict[str, int]
    """By object, which is '' for most kinds."""


class Token(Struct, frozen=True, kw_only=True):
    """Table `tokens`; `id` is 0 until the database has given one. Its repr shows no hash."""

    id: int = 0
    scope: str
    token_hash: str
    device_id: str | None = None
    label: str | None = None
    sites: str | None = None
    """The only sites it sees, as a JSON array; None for all."""
    created_ms: int
    expires_ms: int | None = None
    revoked_ms: int | None = None
    last_refused_ms: int | None = None
    parent_id: int | None = None
    """Of a session: the token that opened it."""
    session_until_ms: int | None = None
    """Of a session: when it ends, however busy it is; `expires_ms` moves with its use and never beyond this."""

    def __repr__(self) -> str:
        return f"Token(id={self.id}, scope={self.scope!r}, device_id={self.device_id!r})"


class EnrollmentCode(Struct, frozen=True, kw_only=True):
    """Table `enrollments`; `id` is 0 until the database has given one. Its repr shows no hash."""

    id: int = 0
    code_hash: str
    label: str | None = None
    created_ms: int
    expires_ms: int
    ended_ms: int | None = None
    uses: int
    uses_left: int
    site: str | None = None
    device_id: str | None = None

    def __repr__(self) -> str:
        return f"EnrollmentCode(id={self.id}, uses_left={self.uses_left})"
