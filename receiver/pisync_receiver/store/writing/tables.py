"""What writing needs of an engine: named statements inside one transaction.

Every engine brings the same names, each with the values that `store.writing` gives it; a test compares them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

from pisync_receiver.health import Crossing, Health

Row = tuple[Any, ...]
Key = tuple[Any, ...]
"""What names a stream in the engine's tables: a number, or device and stream."""


Values = Mapping[str, object]
Select = Callable[[str, Values], list[Row]]
"""Runs a named query outside of writing."""
HOUR_MS: Final = 3_600_000


class Tables(Protocol):
    """One open transaction. A device asked for stays as it was found until the end: nobody else changes it."""

    def one(self, query: str, *values: object) -> Row | None:
        """The first row."""

    def all(self, query: str, *values: object) -> list[Row]:
        """Every row."""

    def put(self, statement: str, rows: Iterable[Row]) -> None:
        """Carry a statement out for each row; at the latest before anything is asked that could see it."""

    def key(self, device_id: str, stream: str, number: int) -> Key:
        """What names a stream that is there."""

    def begin_stream(self, device_id: str, stream: str, now_ms: int) -> Key:
        """Make a stream; what names it."""

    def event_ids(self, count: int, received_ms: int) -> Sequence[int]:
        """Ids for so many events, which arrived then. They may stand for the real ones until the commit."""

    def crossed(self, device_id: str, crossing: Crossing, at_ms: int, health: Health) -> None:
        """A report that arrived at `at_ms` made the device's streak cross the alarm: kept for whoever sends alerts."""

    def sync_event_id(self, device_id: str) -> int:
        """The id of one more sync event."""
