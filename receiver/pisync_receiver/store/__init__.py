"""Where the receiver keeps everything: one protocol, one engine a module (`sqlite`)."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from pisync_receiver.store.types import (
    MISSING_RANGES,
    OVERLAP_MS,
    REJECTIONS,
    DeviceRow,
    Enroll,
    Enrolled,
    EnrollmentCreate,
    EnrollmentRow,
    EventBatch,
    EventFilter,
    EventRow,
    FailureRow,
    Fleet,
    IncomingEvent,
    InvalidEvent,
    Mode,
    Outcome,
    Page,
    Quality,
    RejectedRow,
    Role,
    StoredSyncEvent,
    StreamRow,
    Submission,
    SyncReport,
    TokenCreate,
    TokenExpire,
    TokenRefused,
    TokenRevoke,
    TokenRow,
)

__all__ = [
    "MISSING_RANGES",
    "OVERLAP_MS",
    "REJECTIONS",
    "DeviceRow",
    "Enroll",
    "Enrolled",
    "EnrollmentCreate",
    "EnrollmentRow",
    "EventBatch",
    "EventFilter",
    "EventRow",
    "FailureRow",
    "Fleet",
    "IncomingEvent",
    "InvalidEvent",
    "LoopStore",
    "Mode",
    "Outcome",
    "Page",
    "Quality",
    "Reader",
    "RejectedRow",
    "Role",
    "Store",
    "StoredSyncEvent",
    "StreamRow",
    "Submission",
    "SyncReport",
    "TokenCreate",
    "TokenExpire",
    "TokenRefused",
    "TokenRevoke",
    "TokenRow",
]


class Reader(Protocol):
    """The queries. From any thread, while another writes; each sees only what was durably committed.

    All raise StoreUnusable when the database cannot be read, and those with a cursor BadCursor for one that no page
    of this query gave.
    """

    def device(self, device_id: str) -> DeviceRow | None:
        """One device; None if it was never enrolled and never sent anything."""

    def devices(
        self,
        *,
        site: str | None = None,
        silent_since_ms: int | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[DeviceRow]:
        """Devices by id. `silent_since_ms`: only those with no contact at or after it."""

    def history(
        self,
        device_id: str,
        *,
        limit: int = 100,
        cursor: str | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        failed: bool | None = None,
    ) -> Page[StoredSyncEvent]:
        """A device's sync events, newest timestamp first. `since` is included, `until` is not."""

    def failures(
        self,
        *,
        min_failures: int = 3,
        mode: Mode = "consecutive",
        since_ms: int | None = None,
        site: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[FailureRow]:
        """Devices that keep failing, worst first. `since_ms` counts in mode `total` only: failures at or after it."""

    def completeness(self, device_id: str) -> list[StreamRow]:
        """Every stream of a device, the oldest first; empty for one without streams."""

    def rejected(self, device_id: str, *, limit: int = 100, cursor: str | None = None) -> Page[RejectedRow]:
        """What was rejected of a device, conflicting versions included, in the order of arrival, with bodies."""

    def events(self, wanted: EventFilter, *, limit: int = 100, cursor: str | None = None) -> Page[EventRow]:
        """Stored progress events in the order of arrival. The cursor is the last row's `id` as text. A page with much
        data has fewer than `limit`; it is the last one only where it has no `next`."""

    def fleet(self) -> Fleet:
        """Every device and stream counted: reads all of both, so not for every request."""

    def iterate_events(self, wanted: EventFilter, *, after: int = 0) -> Iterator[EventRow]:
        """All of them whose id is over `after`, a page in memory at a time; never holds a read transaction open."""

    def tokens_by_hash(self, hashes: Sequence[str]) -> list[TokenRow]:
        """Those of the tokens that there are, ended ones included, in any order."""

    def all_tokens(self) -> list[TokenRow]:
        """Every token, revoked and expired ones included, the oldest first."""

    def enrollments(self) -> list[EnrollmentRow]:
        """Every enrollment code, used up and expired ones included, the oldest first."""

    def close(self) -> None:
        """Free everything. Harmless twice."""


class Store(Reader, Protocol):
    """What writes a database, and its queries. `write` and `ready` block: they are for a thread."""

    def connections(self) -> Mapping[str, tuple[int, int]]:
        """What it holds open to a server: name -> (open, of these in use). Empty where there is no server."""

    def write(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Store them all in one durable transaction; an outcome for each, in order.

        Returns only after the commit. Repeating a submission is safe: batches by (device, stream, seq), sync events
        by their key. If one of them cannot be stored its outcome is the exception, and the others are stored.
        """

    def ready(self) -> None:
        """Write something small, durably; raise StoreUnusable if that cannot be done."""


@runtime_checkable
class LoopStore(Store, Protocol):
    """A store that an event loop can write: it waits for a server, and the loop goes on meanwhile."""

    @property
    def writers(self) -> int:
        """How many groups it can write at once."""

    async def awrite(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """`write`, on the event loop."""

    async def aready(self) -> None:
        """`ready`, on the event loop."""

    async def aclose(self) -> None:
        """Free what is bound to the event loop. Harmless twice; what is written afterwards makes it again."""
